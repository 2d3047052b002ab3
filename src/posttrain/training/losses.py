"""The losses of training as plain modules: what is minimised, with no trainer around it.

No module shifts labels or gathers log-probabilities: the caller aligns position t with the token it predicts. Means are
over what a mask or a label keeps, and nothing kept gives 0, so that a batch of nothing stays finite.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.data.encode import IGNORED
from posttrain.errors import PosttrainError

REDUCTIONS = ("mean", "sum", "none")


class SftLoss(nn.Module):
    """Cross entropy over labels that are not -100, with label smoothing (Szegedy et al., arXiv 1512.00567).

    Smoothing ε mixes the label with the uniform distribution: (1 − ε) · −log p(label) + ε · mean over the vocabulary of
    −log p. `reduction` is mean, sum or none.
    """

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise PosttrainError(f"sft: label_smoothing: {label_smoothing}: expected 0 or more and less than 1")
        if reduction not in REDUCTIONS:
            raise PosttrainError(f"sft: reduction: {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits: (..., V)    labels: (...)    returns: a scalar, or (...) with zeros at -100 for reduction none"""
        flat, targets = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
        losses = F.cross_entropy(
            flat, targets, ignore_index=IGNORED, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.reduction == "none":
            return losses.view(labels.shape)
        total = losses.sum()
        return total if self.reduction == "sum" else total / (targets != IGNORED).sum().clamp(min=1)


class PairwiseLoss(nn.Module):
    """What a reward model minimises: the chosen answer's reward above the rejected one's by a margin.

    `sigmoid` is −log σ(c − r − margin) (Bradley and Terry), `logistic` the same written as softplus, `hinge`
    max(0, margin − (c − r)), whose margin is 1 where none is given: with 0 it would be content with equal rewards.
    """

    KINDS = ("sigmoid", "hinge", "logistic")

    def __init__(self, kind: str = "sigmoid", margin: float | None = None) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise PosttrainError(f"pairwise: kind: {kind!r}: expected one of {', '.join(self.KINDS)}")
        self.kind, self.margin = kind, float(kind == "hinge") if margin is None else margin

    def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """chosen, rejected: (B,) rewards    returns: the mean over pairs"""
        difference = chosen - rejected - self.margin
        if self.kind == "hinge":
            return F.relu(-difference).mean()
        return -F.logsigmoid(difference).mean() if self.kind == "sigmoid" else F.softplus(-difference).mean()


class PolicyLoss(nn.Module):
    """PPO's clipped surrogate (Schulman et al., arXiv 1707.06347): −mean min(A·ρ, A·clip(ρ, 1 − ε, 1 + ε))."""

    def __init__(self, epsilon: float = 0.2, epsilon_high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)

    def forward(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """log_probs, old_log_probs, mask: (B, T), mask 1 on completion tokens    advantages: (B, T) or (B, 1)"""
        ratio = (log_probs - old_log_probs).exp()
        surrogate = torch.min(ratio * advantages, ratio.clamp(self.low, self.high) * advantages)
        return -masked_mean(surrogate, mask)


class ValueLoss(nn.Module):
    """½ (V − R)², and with old values ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), as PPO clips it."""

    def __init__(self, epsilon: float = 0.2) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, values: Tensor, returns: Tensor, mask: Tensor, old_values: Tensor | None = None) -> Tensor:
        """values, returns, mask, old_values: (B, T), mask 1 where a value counts    returns: the mean over those"""
        squared = (values - returns) ** 2
        if old_values is not None:
            clipped = old_values + (values - old_values).clamp(-self.epsilon, self.epsilon)
            squared = torch.max(squared, (clipped - returns) ** 2)
        return 0.5 * masked_mean(squared, mask)


class DistillationLoss(nn.Module):
    """alpha · T² · KL(teacher ‖ student) at temperature T, and 1 − alpha of the cross entropy with the labels.

    T² keeps the gradient's size as T grows (Hinton et al., arXiv 1503.02531). Vocabularies may be padded to unequal
    sizes, as Qwen2.5's are: the divergence is over the ids that both have, the cross entropy over all of the student's.
    """

    def __init__(self, temperature: float = 1.0, alpha: float = 0.5) -> None:
        super().__init__()
        if temperature <= 0 or not 0 <= alpha <= 1:
            raise PosttrainError(
                f"distillation: temperature {temperature}, alpha {alpha}: expected more than 0, and from 0 to 1"
            )
        self.temperature, self.alpha = temperature, alpha

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """student: (..., V) logits    teacher: (..., V') logits    labels: (...)    returns: the mean where not -100"""
        n = (labels != IGNORED).sum().clamp(min=1)
        divergence, cross_entropy = self.parts(student, teacher, labels)
        return self.mixed(divergence, cross_entropy) / n

    def mixed(self, divergence: Tensor, cross_entropy: Tensor) -> Tensor:
        """Both parts by their shares."""
        return self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * cross_entropy

    def parts(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """KL(teacher ‖ student) at the temperature, and cross entropy, each summed over labels ≠ -100."""
        kept = labels != IGNORED
        student, teacher, shared = (
            student[kept].float(),
            teacher[kept].float(),
            min(student.shape[-1], teacher.shape[-1]),
        )
        log_student = (student[:, :shared] / self.temperature).log_softmax(-1)
        log_teacher = (teacher[:, :shared] / self.temperature).log_softmax(-1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
        return divergence, F.cross_entropy(student, labels[kept], reduction="sum")


LOSSES: dict[str, type[nn.Module]] = {
    "sft": SftLoss,
    "pairwise": PairwiseLoss,
    "policy": PolicyLoss,
    "value": ValueLoss,
    "distillation": DistillationLoss,
}


def create_loss(name: str, **options: Any) -> nn.Module:
    """The loss of that name; raises PosttrainError, which lists the known ones, for any other."""
    if name not in LOSSES:
        raise PosttrainError(f"loss {name!r}: unknown; known losses: {', '.join(LOSSES)}")
    try:
        return LOSSES[name](**options)
    except TypeError as error:
        raise PosttrainError(f"loss {name!r}: {error}") from error


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1; 0 where it nowhere is. (B, T) and (B, T)"""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(R − V) / Var(R): 1 is perfect, 0 no better than a constant, NaN where returns do not vary. (N,), (N,)"""
    variance = returns.float().var(unbiased=False)
    return float("nan") if variance == 0 else (1 - (returns - values).float().var(unbiased=False) / variance).item()


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO's advantages: each reward less the mean of the others of its prompt (Kool et al. 2019). (P, G) → (P, G)

    That is G / (G − 1) times the reward less the mean of all, which GRPO computes with `scale_rewards: none`.
    """
    others = rewards.shape[-1] - 1
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / others
