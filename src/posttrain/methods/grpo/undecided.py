"""Completions that the verifier could not judge in time: they teach nothing, and nobody is measured against them.

A reward function's None means something else, that it does not apply to a sample; TRL leaves that to the other ones.
"""

from typing import Any

import torch
from torch import Tensor

from posttrain.grading.grader import Grade
from posttrain.methods.grpo.rewards import UNDECIDED


def undecided_rows(grades: list[Grade], accelerator: Any) -> Tensor:
    """Which completions of all processes have no verdict. (N,) bool"""
    own = torch.tensor([grade.verdict in UNDECIDED for grade in grades], dtype=torch.int, device=accelerator.device)
    return accelerator.gather(own).bool()


def leave_out(scored: dict[str, Any], undecided: Tensor, accelerator: Any) -> None:
    """Take the tokens of undecided completions out of the loss and of what it is divided by.

    scored: TRL's dictionary of one generation    undecided: (B,) bool, of this process's completions
    """
    mask = scored["completion_mask"]
    scored["completion_mask"] = mask = mask * (~undecided).unsqueeze(1).to(mask.dtype)
    scored["num_items_in_batch"] = accelerator.gather(mask.sum()).sum()


def groups_without_signal(rewards: Tensor, weights: Tensor, group: int, summed: bool) -> float:
    """Share of the groups whose judged completions all earn the same, so that no advantage differs from 0.

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
    return 1 - differs.any(1).float().mean().item()
