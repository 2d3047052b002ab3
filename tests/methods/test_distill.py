"""Distillation and the value head in small: vocabularies, figures over batches, orders that resuming finds again."""

import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainingArguments,
)
from trl import SFTConfig

from posttrain.methods import distill_pieces
from posttrain.methods.distill import OfflineDistiller, VocabularyError, check_vocabularies
from posttrain.methods.value import Moments, ValueTrainer, moments_of
from posttrain.recipe.reader import RecipeError, read_recipe
from posttrain.training.losses import create_loss, explained_variance
from posttrain.training.repeat_sampler import EpochRepeatSampler


def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")


def test_a_padded_vocabulary_is_the_same_and_another_token_is_not():
    ours, theirs = tokenizer(), tokenizer()
    n = len(ours)
    check_vocabularies(ours, theirs, n, n + 128, "teacher")
    with pytest.raises(VocabularyError, match=f"token id {n - 1} is beyond a vocabulary of {n - 1} rows"):
        check_vocabularies(ours, theirs, n, n - 1, "teacher")
    theirs.add_tokens(["<another>"])
    with pytest.raises(VocabularyError, match=rf"'<another>': id {n} there, None here; a teacher must share"):
        check_vocabularies(ours, theirs, n + 9, n + 9, "teacher")


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 1)), min_size=2, max_size=30), st.integers(1, 29))
def test_explained_variance_of_batches_is_that_of_all_their_tokens(pairs, cut):
    values, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    moments = Moments()
    for part in (slice(None, cut), slice(cut, None)):
        moments.add(moments_of(values[part], returns[part]))
    expected = explained_variance(values, returns)
    assert moments.explained_variance() == pytest.approx(expected, abs=1e-4, rel=1e-4, nan_ok=True)


def test_an_epoch_has_its_own_order_whatever_came_before():
    sampler = EpochRepeatSampler(range(9), 1, 3, 2, True, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    resumed = EpochRepeatSampler(range(9), 1, 3, 2, True, seed=0)
    resumed.set_epoch(1)
    assert list(resumed) == second != first
    assert first[:3] == first[3:6] and sorted(first) == sorted([*range(9)] * 2)


@pytest.mark.parametrize(
    "recipe, override, fault",
    [
        ("tiny_distill", ["--beta", "0.5"], "beta: 0.5: not read with on_policy: false"),
        ("tiny_distill", ["--kd_alpha", "1.5"], "kd_alpha: 1.5: expected at most 1"),
        ("tiny_distill_on_policy", ["--packing", "true"], "packing: True: not read with on_policy: true"),
        ("tiny_distill_on_policy", ["--on_policy", "false"], "max_length: missing; expected with on_policy: false"),
        ("tiny_distill", ["--label_smoothing_factor", "0.1"], "distillation has a loss of its own"),
        ("tiny_value", ["--label_smoothing_factor", "0.1"], "is read by SFT alone"),
        ("tiny_value", ["--num_iterations", "3"], "save_steps: 100: lies between two iterations on one batch"),
        ("tiny_dpo", ["--padding_free", "true"], "not taken from a recipe"),
    ],
)
def test_keys_that_nothing_would_read_are_faults(recipe, override, fault):
    trainer = recipe.split("_")[1]
    with pytest.raises(RecipeError, match=fault):
        read_recipe([str(REPOSITORY / f"recipes/{recipe}.yaml"), *override], trainer)


LABELS = torch.tensor([[-100, -100, 7, 8, 2], [-100, 9, 2, -100, -100]])
IDS = torch.randint(1, 500, (2, 5), generator=torch.Generator().manual_seed(1))


def half() -> AutoConfig:
    torch.manual_seed(0)
    return AutoConfig.from_pretrained(REPOSITORY / "assets/tiny_half")


def test_the_offline_loss_of_micro_batches_adds_up_to_the_closed_form(tmp_path):
    student = AutoModelForCausalLM.from_config(half())
    teacher = AutoModelForCausalLM.from_pretrained(REPOSITORY / "assets/tiny_base")
    loss = create_loss("distillation", temperature=2.0, alpha=0.7)
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]]})
    trainer = OfflineDistiller(
        teacher=teacher, distillation=loss, model=student, args=arguments, train_dataset=rows,
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.model.train()
    with torch.no_grad():
        taught = teacher(IDS).logits[:, :-1]
    whole = loss(student(IDS).logits[:, :-1], taught, LABELS[:, 1:])
    parts = [{"input_ids": IDS[i : i + 1], "labels": LABELS[i : i + 1]} for i in range(2)]
    together = sum(trainer.compute_loss(student, part, num_items_in_batch=5) for part in parts)
    assert together.item() == pytest.approx(whole.item(), rel=1e-5)
    whole.backward()
    expected = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    together.backward()
    assert all(p.grad is None for p in teacher.parameters())
    for parameter, gradient in zip(student.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("words", [(40, 40), (40, 48), (48, 40)])
def test_pieces_of_any_size_give_the_loss_and_the_gradients_of_all_positions_at_once(monkeypatch, piece, words):
    """And the token metrics; vocabularies may be padded to unequal sizes."""
    monkeypatch.setattr(distill_pieces, "PIECE", piece * words[0])
    torch.manual_seed(0)
    rows, teacher_rows = torch.randn(7, 6, dtype=torch.float64, requires_grad=True), torch.randn(7, 5)
    head, frozen = torch.nn.Linear(6, words[0], dtype=torch.float64), torch.randn(words[1], 5)
    labels, loss = torch.randint(0, 40, (7,)), create_loss("distillation", temperature=2.0, alpha=0.7)

    def whole():
        return loss.mixed(*loss.parts(head(rows), teacher_rows @ frozen.T, labels)).double()

    inputs = [rows, head.weight, head.bias]
    total, sums = distill_pieces.PieceLoss.apply(
        rows, teacher_rows, labels, head, lambda x: x @ frozen.T, loss, words[0], True, head.weight, head.bias
    )
    assert total.item() == pytest.approx(whole().item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(3 * total, inputs), torch.autograd.grad(whole(), inputs), strict=True):
        assert torch.allclose(ours, 3 * theirs, rtol=1e-5, atol=1e-5)
    logits = head(rows).detach().float()
    assert sums[2] == (logits.argmax(-1) == labels).sum()
    assert sums[3].item() == pytest.approx(
        torch.distributions.Categorical(logits=logits).entropy().sum().item(), rel=1e-4
    )
    with torch.no_grad():
        again, _ = distill_pieces.PieceLoss.apply(
            rows, teacher_rows, labels, head, lambda x: x @ frozen.T, loss, words[0], False, head.weight, head.bias
        )
    assert again.item() == pytest.approx(total.item(), rel=1e-6)


def test_values_are_clipped_against_what_they_were_at_the_first_of_the_iterations(tmp_path):
    config = half()
    config.num_labels, config.classifier_dropout = 1, 0.0
    model = AutoModelForTokenClassification.from_config(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", gradient_accumulation_steps=2
    )
    trainer = ValueTrainer(epsilon=0.2, num_iterations=2, model=model, args=arguments)
    labels = torch.where(LABELS == -100, -100, 1)
    parts = [{"input_ids": IDS[i : i + 1], "labels": labels[i : i + 1]} for i in range(2)]
    model.train()
    mask = labels != -100

    def values() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(input_ids=part["input_ids"]).logits.squeeze(-1) for part in parts])

    first = values()
    found = sum(trainer.compute_loss(model, part, num_items_in_batch=5) for part in parts)
    assert found.item() == pytest.approx(0.5 * ((first - 1) ** 2)[mask].mean().item(), rel=1e-5)
    with torch.no_grad():
        model.score.bias += 0.5  # beyond the clip, towards the returns
    again = sum(trainer.compute_loss(model, part, num_items_in_batch=5) for part in parts)
    assert again.item() == pytest.approx(0.5 * ((first + 0.2 - 1) ** 2)[mask].mean().item(), rel=1e-4)
    assert trainer._metrics["train"]["clip_frac"] == [0.0, 0.0, 1.0, 1.0]
    third = sum(trainer.compute_loss(model, part, num_items_in_batch=5) for part in parts)  # a batch of its own
    assert third.item() == pytest.approx(0.5 * ((first + 0.5 - 1) ** 2)[mask].mean().item(), rel=1e-4)
