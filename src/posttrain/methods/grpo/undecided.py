"""Completions that the verifier could not judge in time: they teach nothing, and nobody is measured against them.

A reward function's None means something else, that it does not apply to a sample; TRL leaves that to the other ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.grading.grader import Grade, Verdict
from posttrain.methods.grpo.rewards import UNDECIDED


@dataclass(frozen=True)
class Judged:
    """The completions of all processes: which are right, which have no verdict, and their lengths. Each (N,)."""

    right: Tensor
    undecided: Tensor
    tokens: Tensor


def judged(grades: list[Grade], completion_ids: list[list[int]], accelerator: Any) -> Judged:
    """What every process must know of all completions, from this process's own."""
    own = [
        [grade.verdict == Verdict.CORRECT, grade.verdict in UNDECIDED, len(ids)]
        for grade, ids in zip(grades, completion_ids, strict=True)
    ]
    right, undecided, tokens = accelerator.gather(torch.tensor(own, dtype=torch.int, device=accelerator.device)).T
    return Judged(right.bool(), undecided.bool(), tokens)


def leave_out(scored: dict[str, Any], undecided: Tensor, accelerator: Any) -> None:
    """Take the tokens of undecided completions out of the loss and of what it is divided by.

    scored: TRL's dictionary of one generation    undecided: (B,) bool, of this process's completions
    """
    mask = scored["completion_mask"]
    scored["completion_mask"] = mask = mask * (~undecided).unsqueeze(1).to(mask.dtype)
    scored["num_items_in_batch"] = accelerator.gather(mask.sum()).sum()


def groups_with_signal(rewards: Tensor, weights: Tensor, group: int, summed: bool) -> Tensor:
    """Which groups have judged completions that earn different rewards, so that advantages differ from 0. (groups,)

    rewards: (N, F), NaN where a function does not apply    summed: rewards are added before they are compared
    """
    values = rewards * weights
    if summed:
        nothing = values.isnan().all(1, keepdim=True)
        values = values.nansum(1, keepdim=True).masked_fill(nothing, torch.nan)
    values = values[:, (weights != 0)] if not summed else values
    grouped = values.view(-1, group, values.shape[1])
    lowest = grouped.nan_to_num(torch.inf).amin(1)
    highest = grouped.nan_to_num(-torch.inf).amax(1)
    differs = (highest > lowest) & ~torch.isclose(highest, lowest)
    return differs.any(1)
