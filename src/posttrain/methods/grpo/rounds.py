"""Several generations of TRL's trainer as one: their rows from all processes, joined, and their figures."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import pad_across_processes

Scored = dict[str, Any]  # what TRL's trainer makes of a generation: tensors with a row for each completion, and numbers
PER_TOKEN = (  # of the completion, padded on the right
    "completion_ids", "completion_mask", "old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps",
)  # fmt: skip
RATIO = "importance_sampling_ratio"  # for each token of a completion, or one for all of it
SUMMED = ("effective_prompts", "undecided", "unrewarded")  # counts of completions or prompts


def gathered(scored: Scored, accelerator: Accelerator, ratio_per_token: bool) -> Scored:
    """The rows of all processes, in their order; the same in each. Numbers about the whole generation are left out."""
    whole = {}
    for name, rows in scored.items():
        if isinstance(rows, torch.Tensor) and rows.ndim:
            if side := padded_side(name, ratio_per_token):
                rows = pad_across_processes(rows, dim=1, pad_index=padding(name), pad_first=side == "left")
            whole[name] = accelerator.gather(rows)
    return whole


def padded_side(name: str, ratio_per_token: bool) -> str | None:
    """On which side the rows of a tensor are padded, None where all of them have one width."""
    if name.startswith("prompt_"):
        return "left"
    return "right" if name in PER_TOKEN or (name == RATIO and ratio_per_token) else None


def padding(name: str) -> int:
    """What stands where no token is; VESPO takes the logarithm of ratios there too."""
    return 1 if name == RATIO else 0


def rows_of(whole: Scored, groups: Sequence[int], size: int) -> Scored:
    """The rows of some groups of `size` completions each, in the order of `groups`."""
    index = torch.tensor([group * size + i for group in groups for i in range(size)], dtype=torch.long)
    return {name: rows[index.to(rows.device)] for name, rows in whole.items()}


def without_loss(part: Scored) -> Scored:
    """The same rows with no token in the loss and no advantage."""
    blank = {name: torch.zeros_like(part[name]) for name in ("completion_mask", "advantages")}
    return part | blank


def join(parts: Sequence[Scored], ratio_per_token: bool) -> Scored:
    """The rows of all parts below each other, padded to one width."""
    joined: Scored = {}
    for name in parts[0]:
        tensors, side = [part[name] for part in parts], padded_side(name, ratio_per_token)
        if side:
            width = max(tensor.shape[1] for tensor in tensors)
            missing = [width - tensor.shape[1] for tensor in tensors]
            ends = [(n, 0) if side == "left" else (0, n) for n in missing]
            tensors = [
                torch.nn.functional.pad(tensor, end, value=padding(name))
                for tensor, end in zip(tensors, ends, strict=True)
            ]
        joined[name] = torch.cat(tensors)
    return joined


def share_of(whole: Scored, accelerator: Accelerator) -> Scored:
    """This process's rows of what all processes hold, with the number of all tokens in the loss."""
    n = len(whole["completion_ids"]) // accelerator.num_processes
    own = slice(accelerator.process_index * n, (accelerator.process_index + 1) * n)
    return {name: rows[own] for name, rows in whole.items()} | {"num_items_in_batch": whole["completion_mask"].sum()}


def combine(figures: dict[str, list[float]], before: dict[str, int], sizes: Sequence[int]) -> None:
    """Make one figure of those that rounds of `sizes` questions have each appended since `before`, in place.

    Counts are added, extremes stay extremes, and all others are means, which weigh by the size of their round.
    """
    for name, values in figures.items():
        start = before.get(name, 0)
        found = values[start:]
        if len(found) > 1:
            values[start:] = [combined(name, found, sizes if len(found) == len(sizes) else [1] * len(found))]


def combined(name: str, values: Sequence[float], sizes: Sequence[int]) -> float:
    """One figure of several; one that is not a number, as of a reward that no completion got, does not count."""
    known = [(value, size) for value, size in zip(values, sizes, strict=True) if not math.isnan(value)]
    if not known:
        return math.nan
    if name in SUMMED:
        return sum(value for value, _ in known)
    for extreme in (min, max):
        if f"/{extreme.__name__}" in name:
            return extreme(value for value, _ in known)
    return sum(value * size for value, size in known) / sum(size for _, size in known)
