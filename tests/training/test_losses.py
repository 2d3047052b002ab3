"""Every loss against values worked out by hand."""

import math

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.training.losses import LOSSES, create_loss, explained_variance, leave_one_out

LOGITS = torch.tensor(
    [[[math.log(3), 0.0], [0.0, 0.0]], [[0.0, math.log(7)], [5.0, -5.0]]]
)  # p = (¾, ¼), (½, ½), (⅛, ⅞)
LABELS = torch.tensor([[0, 1], [0, -100]])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PosttrainError, match="known losses: " + ", ".join(LOSSES)):
        create_loss("kd")


@pytest.mark.parametrize(
    "name, options, fault",
    [
        ("sft", {"label_smoothing": 1.0}, "less than 1"),
        ("sft", {"reduction": "max"}, "mean, sum, none"),
        ("sft", {"margin": 1}, "margin"),
        ("pairwise", {"kind": "exp"}, "sigmoid, hinge, logistic"),
        ("distillation", {"temperature": 0.0}, "more than 0"),
    ],
)
def test_an_option_out_of_range_is_named(name, options, fault):
    with pytest.raises(PosttrainError, match=fault):
        create_loss(name, **options)


def test_cross_entropy_is_over_labels_that_are_not_ignored():
    each = [-math.log(3 / 4), -math.log(1 / 2), -math.log(1 / 8)]
    assert create_loss("sft")(LOGITS, LABELS).item() == pytest.approx(sum(each) / 3)
    assert create_loss("sft", reduction="sum")(LOGITS, LABELS).item() == pytest.approx(sum(each))
    assert create_loss("sft", reduction="none")(LOGITS, LABELS).flatten().tolist() == pytest.approx([*each, 0.0])
    nothing = create_loss("sft", label_smoothing=0.1)(LOGITS.requires_grad_(), torch.full_like(LABELS, -100))
    nothing.backward()
    assert nothing.item() == 0


def test_label_smoothing_mixes_with_the_uniform_distribution():
    """One token, p = (¾, ¼), label 0, ε = 0.2: 0.8 · −log ¾ + 0.2 · ½ (−log ¾ − log ¼)."""
    expected = 0.8 * -math.log(3 / 4) + 0.1 * (-math.log(3 / 4) - math.log(1 / 4))
    loss = create_loss("sft", label_smoothing=0.2)
    assert loss(LOGITS[0, 0], LABELS[0, 0]).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "options, each",
    [
        ({}, lambda d: math.log(1 + math.exp(-d))),
        ({"kind": "logistic"}, lambda d: math.log(1 + math.exp(-d))),
        ({"kind": "sigmoid", "margin": 0.5}, lambda d: math.log(1 + math.exp(0.5 - d))),
        ({"kind": "hinge"}, lambda d: max(0.0, 1 - d)),
        ({"kind": "hinge", "margin": 3.0}, lambda d: max(0.0, 3 - d)),
    ],
)
def test_pairwise_losses(options, each):
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
    assert create_loss("pairwise", **options)(chosen, rejected).item() == pytest.approx(
        sum(map(each, [2.0, 0.0, -2.0])) / 3
    )


def test_the_policy_loss_clips_where_a_step_would_gain_by_going_further():
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 9.0]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    log_probs = ratio.log().requires_grad_()
    loss = create_loss("policy")(log_probs, torch.zeros(1, 5), advantages, mask)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4)
    loss.backward()
    assert log_probs.grad.flatten().tolist() == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0, 0.0])
    higher = create_loss("policy", epsilon_high=0.4)(log_probs, torch.zeros(1, 5), advantages, mask)
    assert higher.item() == pytest.approx(-(1.4 + 0.5 - 1.5 - 0.8) / 4)


def test_the_value_loss_clips_steps_away_from_the_old_value():
    values, returns = torch.tensor([[0.5, 0.5, 3.0]], requires_grad=True), torch.tensor([[1.0, 1.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    loss = create_loss("value")
    assert loss(values, returns, mask).item() == pytest.approx(0.5 * 0.25)
    old = torch.tensor([[0.0, 0.4, 0.0]])  # the first moved by 0.5, of which 0.2 count: (0.2 − 1)² > (0.5 − 1)²
    clipped = loss(values, returns, mask, old)
    assert clipped.item() == pytest.approx(0.5 * (0.64 + 0.25) / 2)
    clipped.backward()
    assert values.grad.flatten().tolist() == pytest.approx([0.0, -0.25, 0.0])
    assert loss(values, returns, torch.zeros(1, 3)).item() == 0


def test_distillation_is_divergence_at_a_temperature_and_cross_entropy():
    """Student logits (0, 0), teacher's (2 log 3, 0): at T = 2 the teacher is (¾, ¼), the student (½, ½)."""
    student, teacher = torch.zeros(1, 1, 2, requires_grad=True), torch.tensor([[[2 * math.log(3), 0.0]]])
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    loss = create_loss("distillation", temperature=2.0, alpha=0.7)(student, teacher, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(0.7 * 4 * divergence + 0.3 * math.log(2))
    loss.backward()  # T² · (p_student − p_teacher) / T for the divergence, p − onehot for the labels
    expected = 0.7 * 2 * (1 / 2 - 3 / 4) + 0.3 * 1 / 2
    assert student.grad.flatten().tolist() == pytest.approx([expected, -expected])


def test_a_padded_vocabulary_changes_no_divergence():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    labels = torch.tensor([[0, 1, -100], [2, 4, 3]])
    padded = torch.cat([teacher, torch.full((2, 3, 3), 50.0)], -1)  # rows nobody trained may hold anything
    loss = create_loss("distillation", alpha=1.0)
    assert loss(student, padded, labels).item() == pytest.approx(loss(student, teacher, labels).item())
    assert loss(student, student.clone(), labels).item() == pytest.approx(0.0, abs=1e-6)
    wider = torch.cat([student, torch.zeros(2, 3, 3)], -1)
    assert loss(wider, teacher, labels).item() == pytest.approx(loss(student, teacher, labels).item())


def test_explained_variance():
    returns = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((4,), 0.3), returns) == pytest.approx(0.0)
    assert explained_variance(returns * 0.5, returns) == pytest.approx(0.75)  # residuals 0 and ½: ¹⁄₁₆ of ¼
    assert math.isnan(explained_variance(returns, torch.ones(4)))


def test_leave_one_out_is_grpo_without_its_deviation_up_to_a_constant():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    assert leave_one_out(rewards)[0].tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    centred = rewards - rewards.mean(-1, keepdim=True)
    assert torch.allclose(leave_one_out(rewards), centred * 4 / 3)
