"""A value head: at each token of an answer, the chance that it ends up right. `src/value.py` is the order of events."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig

from posttrain.data.encode import IGNORED, Encoding, RowError, encode_each
from posttrain.data.manifest import split_path
from posttrain.data.rows import by_content, read_parquet
from posttrain.hardware import Hardware
from posttrain.methods.sft import Rows
from posttrain.models import packed_attention, trainable
from posttrain.models.loading import read_config
from posttrain.models.rope import check_live, override
from posttrain.models.source import check_weights
from posttrain.recipe.options import StrategyOptions, ValueOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.losses import ValueLoss
from posttrain.training.repeat_sampler import EpochRepeatSampler
from posttrain.training.run import run_arguments


class Moments:
    """Sums from which the explained variance of many batches is that of all their tokens together."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)

    def add(self, sums: Tensor) -> None:
        """sums: (5,), of `moments_of`, over all processes"""
        self.sums += sums.cpu()

    def explained_variance(self) -> float:
        """1 − Var(R − V) / Var(R); NaN where the returns do not vary."""
        n, returns, returns_squared, errors, errors_squared = self.sums.tolist()
        variance = returns_squared / n - (returns / n) ** 2 if n else 0.0
        return 1 - (errors_squared / n - (errors / n) ** 2) / variance if variance > 0 else float("nan")


def moments_of(values: Tensor, returns: Tensor) -> Tensor:
    """Number, sums of R and R², and of R − V and its square. (N,), (N,) → (5,)"""
    values, returns = values.double(), returns.double()
    errors = returns - values
    n = torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)
    return torch.stack([n, returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum()])


class ValueTrainer(WholeRun):
    """Regression of every answer token's value on the answer's outcome, with PPO's clipped loss.

    A batch is trained on `num_iterations` times; from the second on, its values may move by `epsilon` from what they
    were at the first. Labels are 1 or 0 on answer tokens and -100 elsewhere.
    """

    def __init__(self, epsilon: float, num_iterations: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss, self.num_iterations = ValueLoss(epsilon), num_iterations
        self.micro_steps = 0
        self.old_values: dict[int, Tensor] = {}
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the labels of all micro-batches
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.moments = {mode: (Moments(), Moments()) for mode in self._metrics}  # of all tokens, of the last ones

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochRepeatSampler:
        batch = self.args.per_device_train_batch_size * self.accelerator.num_processes
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch *= self.args.gradient_accumulation_steps
        return EpochRepeatSampler(dataset, 1, batch, self.num_iterations, True, seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Half the clipped squared error, summed over answer tokens and divided by their number in the whole step."""
        labels, mode = inputs["labels"], "train" if model.training else "eval"
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        values, mask = outputs.logits.squeeze(-1).float(), labels != IGNORED
        old = self._old_values(values.detach()) if model.training else None
        n = mask.sum().clamp(min=1)
        mean = self.loss(values, labels.float(), mask, old)
        self._note(mode, values.detach(), labels, mask, old)
        loss = mean if num_items_in_batch is None else mean * n / num_items_in_batch
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # that DDP divides by again
        return (loss, outputs) if return_outputs else loss

    def _old_values(self, values: Tensor) -> Tensor | None:
        """What the values of this micro-batch were when it was first trained on."""
        accumulated = self.args.gradient_accumulation_steps
        place, first = self.micro_steps % accumulated, self.micro_steps // accumulated % self.num_iterations == 0
        self.micro_steps += 1
        if self.num_iterations == 1:
            return None
        if first:
            self.old_values[place] = values
        return self.old_values[place]

    def _note(self, mode: str, values: Tensor, labels: Tensor, mask: Tensor, old: Tensor | None) -> None:
        if old is not None:
            moved = ((values - old).abs() > self.loss.epsilon)[mask].float().mean()
            self._metrics[mode]["clip_frac"].append(moved.item())
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        for moments, kept in zip(self.moments[mode], (mask, last), strict=True):
            moments.add(self.accelerator.reduce(moments_of(values[kept], labels[kept])))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add explained variances and the share of values that the clip holds back."""
        mode = "train" if "loss" in logs else "eval" if "eval_loss" in logs else None
        if mode:
            prefix = "eval_" if mode == "eval" else ""
            logs |= {f"{prefix}{name}": sum(v) / len(v) for name, v in self._metrics[mode].items() if v}
            names = ("explained_variance", "explained_variance_last")
            for name, moments in zip(names, self.moments[mode], strict=True):
                logs[prefix + name] = round(moments.explained_variance(), 4)
            self.moments[mode] = (Moments(), Moments())
            self._metrics[mode].clear()
        super().log(logs, start_time)


def load_rows(
    options: ValueOptions, manifest: dict[str, Any], arguments: TrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Answers as ids with their outcome as the label of every token, of the splits that the recipe uses."""
    encoding = Encoding(options.prompt, tokenizer.eos_token, options.max_length, options.too_long)
    names = ("train", "validation") if arguments.eval_strategy != "no" else ("train",)
    splits, used, dropped = {}, {}, {}
    for name in names:
        path = split_path(Path(options.dataset_name), manifest, name)
        rows = by_content(read_parquet(path), options.num_train_examples if name == "train" else None)
        if rows and "outcome" not in rows[0]:
            raise RowError(f"{path}: has no column 'outcome'; write it with data_prep/preference_pairs.py --outcomes")
        encoded = [_labelled(row, one) for row, one in zip(rows, encode_each(rows, tokenizer, encoding), strict=True)]
        kept = [row for row in encoded if len(row["input_ids"]) <= options.max_length]
        if not kept or (len(kept) < len(rows) and options.too_long == "error"):
            raise RowError(
                f"{path}: {len(rows) - len(kept)} of {len(rows)} answers are longer than max_length "
                f"({options.max_length}); raise it, or write too_long: drop"
            )
        splits[name], used[name], dropped[name] = Dataset.from_list(kept), len(kept), len(rows) - len(kept)
    return Rows(splits["train"], splits.get("validation"), used, dropped)


def _labelled(row: dict[str, Any], one: Any) -> dict[str, list[int]]:
    if one.fault:
        raise RowError(one.fault)
    labels = [IGNORED] * one.n_prompt + [int(row["outcome"])] * (len(one.ids) - one.n_prompt)
    return {"input_ids": one.ids.tolist(), "labels": labels}


def load_model(model: ModelConfig, chosen: StrategyOptions, hardware: Hardware, seed: int) -> PreTrainedModel:
    """The recipe's weights with one output per token, drawn by `seed`, in place of the vocabulary; no dropout."""
    packed_attention.register()
    set_seed(seed)
    name, revision = model.model_name_or_path, model.model_revision
    config = read_config(str(name), revision, num_labels=1)
    override(config, chosen.rope_theta, chosen.max_position_embeddings, str(name))
    config.classifier_dropout = 0.0  # transformers' own is 0.1, which no value of the same prefix would survive twice
    check_weights(str(name))
    loaded = AutoModelForTokenClassification.from_pretrained(
        name,
        revision=revision,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        dtype="auto" if model.dtype == "auto" else getattr(torch, model.dtype or "float32"),
        attn_implementation=hardware.attn_implementation,
    )
    check_live(loaded, str(name))
    return loaded


def build_arguments(recipe: Recipe, hardware: Hardware) -> TrainingArguments:
    """The arguments of transformers' own trainer; tokens are counted without padding."""
    return run_arguments(recipe, hardware, TrainingArguments, include_num_input_tokens_seen="non_padding")


def build_trainer(
    recipe: Recipe, options: ValueOptions, arguments: TrainingArguments, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> ValueTrainer:  # fmt: skip
    """The trainer with its model and callbacks."""
    chosen = recipe.build(StrategyOptions)
    model = load_model(recipe.build(ModelConfig), chosen, hardware, arguments.seed)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path, options.max_length)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    trainer = ValueTrainer(
        epsilon=options.value_clip,
        num_iterations=options.num_iterations,
        model=model,
        args=arguments,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        processing_class=tokenizer,
    )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    return trainer
