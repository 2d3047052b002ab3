"""Micro-batches of one generation: less padding, the same gradient, every completion trained on once."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from conftest import REPOSITORY
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from trl.trainer.utils import split_tensor_dict

from posttrain.grading.grader import Grader
from posttrain.methods.grpo.micro_batches import SILENT, micro_batches, note_silent, only_advantages, real_positions
from posttrain.methods.grpo.trainer import GrpoTrainer


def generation(lengths: list[int], prompts: list[int]) -> dict[str, torch.Tensor]:
    """Token ids name row and position, as TRL pads them."""
    n, width, prompt_width = len(lengths), max(lengths), max(prompts)
    completion_mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    prompt_mask = torch.arange(prompt_width) >= prompt_width - torch.tensor(prompts)[:, None]
    ids = 1000 * torch.arange(1, n + 1)[:, None]
    return {
        "prompt_ids": (ids + torch.arange(prompt_width)) * prompt_mask,
        "prompt_mask": prompt_mask.int(),
        "completion_ids": (ids + 500 + torch.arange(width)) * completion_mask,
        "completion_mask": completion_mask.int(),
        "importance_sampling_ratio": torch.ones(n, 1),
        "advantages": torch.arange(n).float(),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }


@given(st.data(), st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 4), (6, 3)]), st.integers(1, 3))
def test_every_completion_is_in_one_micro_batch_with_all_its_tokens(data, cut, size):
    number, per_update = cut
    n = number * size
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n))
    prompts = data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    scored = generation(lengths, prompts)
    batches = micro_batches(scored, number, per_update)
    assert len(batches) == number
    assert sorted(a for batch in batches for a in batch["advantages"].tolist()) == list(range(n))
    for batch in batches:
        assert len(batch["advantages"]) == size
        assert int(batch["num_items_in_batch"]) == sum(lengths)
        for i, row in enumerate(batch["advantages"].long().tolist()):
            for name in ("prompt_ids", "completion_ids"):
                kept, all_of_it = batch[name][i], scored[name][row]
                assert kept[kept > 0].tolist() == all_of_it[all_of_it > 0].tolist()
    for start in range(0, number, per_update):  # sorted within an update
        sizes = [int(batch["completion_mask"].sum(1).max()) for batch in batches[start : start + per_update]]
        assert sizes == sorted(sizes)


@given(st.data(), st.sampled_from([(4, 2), (4, 4), (6, 3), (1, 1)]), st.integers(1, 3))
def test_completions_without_advantage_fill_micro_batches_that_nobody_computes(data, cut, size):
    number, per_update = cut
    n = number * size
    scored = generation(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), [3] * n)
    advantages = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0]), min_size=n, max_size=n))
    scored["advantages"] = torch.tensor(advantages)
    batches = micro_batches(scored, number, per_update, silent_first=True)
    silent = note_silent(batches, per_update, Accelerator(cpu=True))
    for update in (batches[i : i + per_update] for i in range(0, number, per_update)):
        without = sum(int((batch["advantages"] == 0).sum()) for batch in update)
        expected = min(without // size, per_update - 1)  # the last one runs
        assert [batch[SILENT] for batch in update] == [i < expected for i in range(per_update)]
    assert silent == sum(len(batch["advantages"]) for batch in batches if batch[SILENT])
    assert sorted(a for batch in batches for a in batch["advantages"].tolist()) == sorted(advantages)


def test_reasoning_like_lengths_leave_at_most_a_fifth_of_padding():
    """Heavy-tailed lengths, 512 completions in micro-batches of 8: padded to the longest of all, a third is real."""
    torch.manual_seed(0)
    lengths = torch.distributions.LogNormal(6.5, 0.7).sample((512,)).clamp(32, 4096).int().tolist()
    scored = generation(lengths, [60] * 512)
    assert real_positions([scored]) < 0.4
    assert real_positions(micro_batches(scored, 64, 64)) > 0.8


@pytest.mark.parametrize("silent", [0, 9])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_the_gradient_is_that_of_the_padded_path(loss_type, silent, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    model = AutoModelForCausalLM.from_pretrained(REPOSITORY / "assets/tiny_base")
    rows = [{"id": str(i), "prompt": "Ann has 3 apples. " * (1 + i), "answer": "3"} for i in range(4)]
    arguments = GRPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        num_generations=4, max_completion_length=24, use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, seed=0,
    )  # fmt: skip

    def by_length(completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    with Grader(workers=1) as grader:
        trainer = GrpoTrainer(
            grader=grader, model=model, args=arguments, reward_funcs=[by_length],
            train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        )  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 4
        scored = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
    # Base completions all run to the budget; give them the lengths of ones that stop.
    for i, length in enumerate(torch.linspace(3, 24, 16).int().tolist()):
        scored["completion_mask"][i, length:] = 0
    scored["advantages"] = torch.linspace(-1, 1, 16)
    scored["advantages"][:silent] = 0
    scored["num_items_in_batch"] = scored["completion_mask"].sum()

    def gradient(batches):
        trainer.model.zero_grad()
        for batch in batches:
            trainer.compute_loss(trainer.model, batch).backward()
        return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    batches = micro_batches(scored, 4, 4, trainer.only_advantages)
    assert note_silent(batches, 4, trainer.accelerator) == 4 * (silent // 4)
    padded, ours = gradient(split_tensor_dict(scored, 4)), gradient(batches)
    assert len(trainer._metrics["train"]["entropy"]) == 8 - silent // 4  # forward passes
    largest = max(float(g.abs().max()) for g in padded.values())
    assert largest > 0
    for name, g in padded.items():
        assert torch.allclose(g, ours[name], atol=1e-4 * largest, rtol=1e-4), name


@pytest.mark.parametrize(
    ("ids", "text", "cut"),
    [
        ([7] * 24, "no end", True),
        ([7] * 23 + [1], "an end token as the last", False),
        ([7] * 24, "it fits exactly </answer>", False),
        ([7] * 9, "a stop string </answer>", False),
    ],
)
def test_a_stop_string_is_an_end(ids, text, cut):
    class Ended:
        args = GRPOConfig(output_dir="", generation_kwargs={"stop": ["</answer>"]}, use_cpu=True, bf16=False)
        max_completion_length, eos_token_ids = 24, [1]

    assert GrpoTrainer.is_truncated(Ended, ids, text) is cut


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({}, True),
        ({"loss_type": "bnpo"}, False),
        ({"beta": 0.1}, False),
        ({"_entropy_bonus_enabled": True}, False),
        ({"aux_loss_enabled": True}, False),
        ({"distributed_type": DistributedType.MULTI_GPU}, True),
        ({"distributed_type": DistributedType.DEEPSPEED}, False),
        ({"distributed_type": DistributedType.FSDP}, False),
    ],
)
def test_what_else_is_in_the_loss_is_computed_for_every_completion(change, alone):
    values = {
        "beta": 0.0, "loss_type": "grpo", "_entropy_bonus_enabled": False, "aux_loss_enabled": False,
        "distributed_type": DistributedType.NO, **change,
    }  # fmt: skip
    accelerator = SimpleNamespace(distributed_type=values.pop("distributed_type"))
    assert only_advantages(SimpleNamespace(accelerator=accelerator, **values)) is alone
