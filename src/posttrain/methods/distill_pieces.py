"""The offline loss of distillation by pieces: the logits of a few positions at a time, of student and teacher.

Whole, both models' logits over 151,936 words and the copies that a divergence needs are by far the largest tensors of a
step. Here a piece is projected, its loss and its gradient are computed, and its logits are gone before the next one.
TRL's kernel does that for a divergence; here one pass of the student's head serves the cross entropy and the token
metrics as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl.trainer.utils import maybe_gather_lm_head_ctx

from posttrain.models.labelled_head import predicting, targets
from posttrain.plan.memory.activations import PIECE
from posttrain.training.losses import DistillationLoss

Project = Callable[[Tensor], Tensor]  # hidden states (N, H) → logits (N, V)


class PieceLoss(torch.autograd.Function):
    """The mixed loss summed over rows, and sums for the log: divergence, cross entropy, right tokens, entropy.

    The gradients are made in the forward pass, piece by piece, and scaled in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor, project: Project, project_teacher: Project,
        loss: DistillationLoss, vocabulary: int, logged: bool, *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """student: (N, H)    teacher: (N, H')    labels: (N,)    returns: a scalar, and (4,) without a gradient"""
        needs = any(ctx.needs_input_grad)
        of_rows = torch.zeros(student.shape, dtype=torch.float32, device=student.device) if needs else None
        of_parameters = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters if needs]
        total, sums = student.new_zeros((), dtype=torch.float32), student.new_zeros(4, dtype=torch.float32)
        size = max(1, PIECE // vocabulary)
        for piece in range(0, len(labels), size):
            rows, wanted = student[piece : piece + size].detach(), labels[piece : piece + size]
            with torch.set_grad_enabled(needs):
                rows.requires_grad_(needs)
                logits = project(rows)
                divergence, cross_entropy = loss.parts(logits, project_teacher(teacher[piece : piece + size]), wanted)
                mixed = loss.mixed(divergence, cross_entropy)
            total += mixed.detach().float()
            sums += torch.stack([divergence.detach(), cross_entropy.detach(), *token_sums(logits, wanted, logged)])
            if needs:
                row_gradient, *gradients = torch.autograd.grad(mixed, [rows, *parameters])
                of_rows[piece : piece + size] = row_gradient
                for whole, gradient in zip(of_parameters, gradients, strict=True):
                    whole += gradient
        ctx.types = student.dtype, [p.dtype for p in parameters]
        ctx.save_for_backward(*([of_rows, *of_parameters] if needs else []))
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_rows, *of_parameters = ctx.saved_tensors
        row_type, types = ctx.types
        scaled = [(whole * gradient).to(kind) for whole, kind in zip(of_parameters, types, strict=True)]
        return ((of_rows * gradient).to(row_type), *[None] * 7, *scaled)


def token_sums(logits: Tensor, labels: Tensor, logged: bool) -> tuple[Tensor, Tensor]:
    """Right tokens and summed entropy of a piece, zeros on steps that are not logged. (N, V), (N,)"""
    if not logged:
        return logits.new_zeros((), dtype=torch.float32), logits.new_zeros((), dtype=torch.float32)
    log_probs = logits.detach().float().log_softmax(-1)
    return (log_probs.argmax(-1) == labels).sum().float(), -(log_probs.exp() * log_probs).sum()


@contextmanager
def head_computes(model: nn.Module, compute: Callable[[Tensor, Project], Tensor]) -> Iterator[None]:
    """Inside, the model's head gives `compute(hidden states, the head's own projection)` in place of logits.

    That runs within the model's forward pass, where what is sharded over processes is whole. hidden states: (B, T, H)
    """
    head = model.get_output_embeddings()
    own = head.forward
    head.forward = lambda hidden: compute(hidden, own)
    try:
        yield
    finally:
        del head.forward


def labelled_rows(hidden: Tensor, labels: Tensor) -> Tensor:
    """Hidden states that predict a label. (B, T, H), (B, T) → (N, H)"""
    return hidden.flatten(0, 1).index_select(0, predicting(labels).flatten().nonzero().squeeze(-1))


def distill(
    student: nn.Module, run_student: Callable[[], Any], teacher: nn.Module, run_teacher: Callable[[], Any],
    labels: Tensor, loss: DistillationLoss, logged: bool,
) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
    """The mixed loss summed over labels, the four sums of `PieceLoss`, and what the student's forward pass gave.

    `run_…` are forward passes through what wraps the models, without labels.    labels: (B, T), not shifted
    """
    wanted, found = targets(labels), {}

    def keep_rows(hidden: Tensor, _: Project) -> Tensor:
        return labelled_rows(hidden, labels)

    with torch.no_grad(), head_computes(teacher, keep_rows):
        rows = run_teacher().logits
    head = teacher.get_output_embeddings()

    def lose(hidden: Tensor, project: Project) -> Tensor:
        parameters = [p for p in student.get_output_embeddings().parameters() if p.requires_grad]
        size = student.config.get_text_config().vocab_size
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            project_teacher = projection(head)
            total, found["sums"] = PieceLoss.apply(
                labelled_rows(hidden, labels), rows, wanted, project, project_teacher, loss, size, logged, *parameters
            )
        return total

    with head_computes(student, lose):
        outputs = run_student()
    return outputs.logits, found["sums"], outputs


def projection(head: nn.Module) -> Project:
    """The logits of a frozen head, whose weight is whole or gathered once here."""
    weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (head.weight, head.bias))

    def project(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return nn.functional.linear(rows, weight, bias)

    return project
