"""A tokenizer whose padding is its end token, as SmolLM2's is: every method still trains the end, and no padding."""

from pathlib import Path
from typing import Any

import pytest
import scripted_grpo
import torch
from conftest import REPOSITORY
from datasets import Dataset
from scripted_grpo import RIGHT, WRONG
from tiny_trainer import CONFIGS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DistillationConfig, DPOConfig, KTOConfig, RewardConfig, SFTConfig

from posttrain.data.encode import Encoding, encode_each, load_tokenizer
from posttrain.methods.distill import OfflineDistiller, OnPolicyDistiller
from posttrain.methods.dpo import PairTrainer
from posttrain.methods.kto import OutcomeTrainer, with_others_answers
from posttrain.methods.reward_model import PairwiseTrainer, padding_beside_the_end
from posttrain.methods.sft import RecipeTrainer
from posttrain.training.losses import DistillationLoss, PairwiseLoss

SHORT, LONG = "4.", "so it is 12, as said, and done."
OPTIONS = {
    "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True,
    "save_strategy": "no", "max_steps": 1, "per_device_train_batch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(once) -> Path:
    """A random Llama with such a tokenizer."""

    def make(directory: Path) -> None:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
        tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
        tokenizer.save_pretrained(directory)

    return once("pad_is_end", make)


@pytest.fixture
def tokenizer(model: Path) -> Any:
    found = load_tokenizer(str(model), None, None)
    assert found.pad_token_id == found.eos_token_id is not None
    return found


def encoded(tokenizer: Any) -> list[Any]:
    """Two answers of unequal length to one question."""
    rows = [
        {"id": text, "prompt": [{"role": "user", "content": "How many?"}],
         "completion": [{"role": "assistant", "content": text}]}
        for text in (SHORT, LONG)
    ]  # fmt: skip
    return encode_each(rows, tokenizer, Encoding("chat", tokenizer.eos_token, 128, "error"))


def assert_ends_alone_count(ids: torch.Tensor, counted: torch.Tensor, lengths: list[int], end: int) -> None:
    """Of every row the last token is the end and counts, and nothing after it does. ids, counted: (B, T)"""
    assert len(set(lengths)) > 1, "nothing is padded"
    for row, mask, length in zip(ids, counted, lengths, strict=True):
        assert row[length - 1] == end and mask[length - 1] and not mask[length:].any()


@pytest.mark.parametrize("method", ["sft", "offline distillation"])
def test_labels(model, tokenizer, tmp_path, method):
    rows = encoded(tokenizer)
    labels = [[-100] * row.n_prompt + row.ids[row.n_prompt :].tolist() for row in rows]
    data = Dataset.from_dict({"input_ids": [row.ids.tolist() for row in rows], "labels": labels})
    arguments = SFTConfig(output_dir=str(tmp_path), dataset_kwargs={"skip_prepare_dataset": True}, **OPTIONS)
    common = {"model": str(model), "args": arguments, "train_dataset": data, "processing_class": tokenizer}
    if method == "sft":
        trainer = RecipeTrainer(**common)
    else:
        teacher = AutoModelForCausalLM.from_pretrained(model)
        trainer = OfflineDistiller(teacher=teacher, distillation=DistillationLoss(), **common)
    batch = trainer.data_collator([data[0], data[1]])
    lengths = [len(row.ids) for row in rows]
    assert_ends_alone_count(batch["input_ids"], batch["labels"] != -100, lengths, tokenizer.eos_token_id)
    before = trainer.model.get_output_embeddings().weight[tokenizer.eos_token_id].clone()
    trainer.train()
    assert not trainer.model.get_output_embeddings().weight[tokenizer.eos_token_id].equal(before)


def pairs(tokenizer: Any, whole: bool) -> Dataset:
    chosen, rejected = encoded(tokenizer)
    prompt = chosen.ids[: chosen.n_prompt].tolist()
    sides = {
        "chosen_ids": chosen.ids.tolist() if whole else chosen.ids[chosen.n_prompt :].tolist(),
        "rejected_ids": rejected.ids.tolist() if whole else rejected.ids[rejected.n_prompt :].tolist(),
    }
    return Dataset.from_list([sides if whole else {"prompt_ids": prompt, **sides}] * 2)


def test_the_mask_of_dpo(model, tokenizer, tmp_path):
    data = pairs(tokenizer, whole=False)
    trainer = PairTrainer(
        model=str(model), args=DPOConfig(output_dir=str(tmp_path), **OPTIONS), train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    lengths = [len(row.ids) for row in encoded(tokenizer) for _ in range(2)]
    assert_ends_alone_count(batch["input_ids"], batch["completion_mask"].bool(), lengths, tokenizer.eos_token_id)


def test_the_mask_of_kto(model, tokenizer, tmp_path):
    rows = encoded(tokenizer)
    data = [
        {
            "prompt_ids": row.ids[: row.n_prompt].tolist(),
            "completion_ids": row.ids[row.n_prompt :].tolist(),
            "label": i == 0,
        }
        for i, row in enumerate(rows)
    ]
    trainer = OutcomeTrainer(
        model=str(model), args=KTOConfig(output_dir=str(tmp_path), **OPTIONS), processing_class=tokenizer,
        train_dataset=Dataset.from_list(with_others_answers(data, 2)),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    for name, lengths in (("", [len(row.ids) for row in rows]), ("KL_", [len(row.ids) for row in reversed(rows)])):
        counted = batch[f"{name}completion_mask"].bool()
        assert_ends_alone_count(batch[f"{name}input_ids"], counted, lengths, tokenizer.eos_token_id)


def test_a_reward_model_reads_its_score_at_the_end(model, tokenizer, tmp_path):
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    trainer = PairwiseTrainer(
        pairwise=PairwiseLoss(), model=network, args=RewardConfig(output_dir=str(tmp_path), **OPTIONS),
        train_dataset=pairs(tokenizer, whole=True), processing_class=padding_beside_the_end(tokenizer),
    )  # fmt: skip
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k != "margin"}
    every: list[torch.Tensor] = []
    network.score.register_forward_hook(lambda *given: every.append(given[2].squeeze(-1)))
    rewards = network.eval()(**batch).logits.squeeze(-1)
    lengths = torch.tensor([len(row.ids) for row in encoded(tokenizer) for _ in range(2)])
    assert batch["input_ids"][range(4), lengths - 1].tolist() == [tokenizer.eos_token_id] * 4
    torch.testing.assert_close(rewards, every[0][range(4), lengths - 1])


def test_the_mask_of_grpo(model, tokenizer, tmp_path):
    texts = [RIGHT, "it is, as we have said, " + RIGHT, WRONG, "so it is rather " + WRONG] * 4
    trainer = scripted_grpo.build(model, tmp_path / "run", texts, ("accuracy",))
    seen = inputs_of(trainer)
    trainer.train()
    assert_completions_end(seen, tokenizer.eos_token_id)


class Scripted(OnPolicyDistiller):
    """Answers with completions of two lengths that end."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        end = self.processing_class.eos_token_id
        return [[7, 8, 9, end] if i % 2 else [7, end] for i in range(len(prompt_ids))]


def test_the_mask_of_distillation_on_policy(model, tokenizer, tmp_path):
    arguments = DistillationConfig(output_dir=str(tmp_path), max_completion_length=8, **OPTIONS)
    trainer = Scripted(
        model=AutoModelForCausalLM.from_pretrained(model), teacher_model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments, train_dataset=Dataset.from_dict({"prompt": ["1 + 2 = ", "5 - 2 = "]}),
        processing_class=tokenizer,
    )  # fmt: skip
    seen = inputs_of(trainer)
    trainer.train()
    assert_completions_end(seen, tokenizer.eos_token_id)


def inputs_of(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """What the loss is computed from, as a list that training fills."""
    seen, compute_loss = [], trainer.compute_loss

    def recording(model: Any, inputs: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> Any:
        seen.append(inputs)
        return compute_loss(model, inputs, *arguments, **options)

    trainer.compute_loss = recording
    return seen


def assert_completions_end(seen: list[dict[str, torch.Tensor]], end: int) -> None:
    lengths = set()
    for batch in seen:
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True):
            length = int((ids == end).nonzero()[0]) + 1
            lengths.add(length)
            assert mask[:length].all() and not mask[length:].any()
    assert len(lengths) > 1
