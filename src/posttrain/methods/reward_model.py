"""A reward model: trainer and scoring. `src/reward_model.py` is the order of events."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import ModelConfig, RewardConfig, RewardTrainer, get_quantization_config

from posttrain import lineage
from posttrain.console import Progress
from posttrain.data.encode import Encoding, encode_each, load_tokenizer
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.methods.pairs import Pairs
from posttrain.models import packed_attention, trainable
from posttrain.models.loading import read_config
from posttrain.models.rope import check_live, override
from posttrain.models.source import check_weights
from posttrain.recipe.options import RewardOptions, StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.losses import PairwiseLoss
from posttrain.training.run import run_arguments


class PairwiseTrainer(WholeRun, RewardTrainer):
    """RewardTrainer with any pairwise loss and margin; figures and padding are TRL's."""

    def __init__(self, pairwise: PairwiseLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pairwise = pairwise

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL computes rewards and figures; its own loss, which knows one form, is replaced."""
        _, outputs = super().compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        loss = self.pairwise(chosen, rejected)
        if not model.training:  # TRL takes the mean of batches, of which the last is smaller
            for name, values in (("accuracy", (chosen > rejected).float()), ("margin", chosen - rejected)):
                self._metrics["eval"][name].pop()
                self._metrics["eval"][name].extend(self.accelerator.gather_for_metrics(values).tolist())
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        return (loss, outputs) if return_outputs else loss


def load_model(model: ModelConfig, chosen: StrategyOptions, hardware: Hardware, seed: int) -> PreTrainedModel:
    """The recipe's weights with one output in place of the vocabulary, drawn by `seed` where the file has none."""
    packed_attention.register()
    name, revision = str(model.model_name_or_path), model.model_revision
    config = read_config(name, revision, num_labels=1)
    override(config, chosen.rope_theta, chosen.max_position_embeddings, name)
    set_seed(seed)
    check_weights(name)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        name,
        config=config,
        revision=revision,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=get_quantization_config(model),
        dtype="auto" if model.dtype == "auto" else getattr(torch, model.dtype or "float32"),
        attn_implementation=hardware.attn_implementation,
    )
    check_live(loaded, name)
    return loaded


def padding_beside_the_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token that is not its end, where the two are one as in SmolLM2.

    The score is read at the last token that is no padding, by its id: there the end would be taken for padding, and the
    score be that of the token before. Any other token will do, as every sequence ends with the end.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = [*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens([0, 1])]
        tokenizer.pad_token = next(token for token in others if token != tokenizer.eos_token)
    return tokenizer


def build_arguments(recipe: Recipe, hardware: Hardware) -> RewardConfig:
    """TRL's arguments; tokens are counted without padding."""
    return run_arguments(recipe, hardware, RewardConfig, include_num_input_tokens_seen="non_padding")


def build_trainer(
    recipe: Recipe, options: RewardOptions, arguments: RewardConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, pairs: Pairs,
) -> PairwiseTrainer:  # fmt: skip
    """The trainer with its model, adapter and callbacks."""
    chosen = recipe.build(StrategyOptions)
    model_config = dataclasses.replace(recipe.build(ModelConfig), lora_task_type="SEQ_CLS")  # trains the new output too
    model = load_model(model_config, chosen, hardware, arguments.seed)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path, arguments.max_length)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    whole = pairs.whole()
    trainer = PairwiseTrainer(
        pairwise=PairwiseLoss(options.pairwise_loss, options.margin),
        model=model,
        args=arguments,
        train_dataset=whole.train,
        eval_dataset=whole.validation,
        processing_class=padding_beside_the_end(tokenizer),
        peft_config=trainable.adapter_config(model_config, chosen),
    )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    return trainer


class RewardModel:
    """A finished run of src/reward_model.py that scores completions, rendered as its training rendered them."""

    def __init__(self, name: str, batch_size: int) -> None:
        """Load `final/`; raises PosttrainError where it is not a reward model."""
        record = lineage.read_lineage(name)
        if read_config(name).num_labels != 1 or not record:
            raise PosttrainError(f"{name}: not a reward model of this project; expected final/ of src/reward_model.py")
        packed_attention.register()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        check_weights(name)
        model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        self.model = model.to(device).eval()
        self.tokenizer = load_tokenizer(name, None, record["eos_token"])  # with the padding that its config names
        positions = self.model.config.get_text_config().max_position_embeddings
        self.encoding = Encoding(record["prompt"], record["eos_token"], positions, "error")
        self.batch_size = batch_size

    def score(
        self, rows: list[dict[str, Any]], samples: dict[str, list[dict[str, Any]]]
    ) -> dict[str, list[float | None]]:
        """Rewards by question, of lines of samples.jsonl; None for what was cut off or marks no answer."""
        asked = {row["id"]: row for row in rows}
        completions = [(asked[i], sample["completion"]) for i, of_question in samples.items() for sample in of_question]
        rendered = [{**row, "completion": [{"role": "assistant", "content": text}]} for row, text in completions]
        encoded = encode_each(rendered, self.tokenizer, self.encoding)
        fits = [e.fault is None and len(e.ids) <= self.encoding.max_length for e in encoded]
        found = iter(self.rewards([e.ids.tolist() for e, fit in zip(encoded, fits, strict=True) if fit]))
        scored = iter([next(found) if fit else None for fit in fits])
        rewards = {i: [(next(scored), sample) for sample in of_question] for i, of_question in samples.items()}
        return {
            i: [None if s["finish_reason"] == "length" or s["answer"] is None else r for r, s in of_question]
            for i, of_question in rewards.items()
        }

    @torch.inference_mode()
    def rewards(self, sequences: Sequence[list[int]]) -> list[float]:
        """Rewards of whole sequences of ids, in their order; similar lengths are scored together."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = [0.0] * len(sequences)
        progress = Progress("scoring", "answers", len(order))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            ids = {"input_ids": [sequences[i] for i in places]}
            batch = self.tokenizer.pad(ids, padding_side="right", return_tensors="pt").to(self.model.device)
            for place, score in zip(places, self.model(**batch).logits.squeeze(-1).float().tolist(), strict=True):
                scores[place] = score
            progress.advance(len(places))
        progress.close()
        return scores
