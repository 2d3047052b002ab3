"""Cut a batch of completions into micro-batches by length, so that little of what is computed is padding."""

from typing import Any

import torch


def micro_batches(scored: dict[str, Any], number: int, per_update: int) -> list[dict[str, Any]]:
    """`number` micro-batches of one generation; those of one optimizer step are sorted by length and trimmed.

    Which completions share an optimizer step stays random, so that no step sees the short ones alone. `scored` is TRL's
    dictionary: prompts padded on the left, completions on the right, and whatever has a row for each.
    """
    lengths = scored["completion_mask"].sum(1)
    order = torch.randperm(len(lengths))
    updates = order.chunk(number // per_update)
    by_length = [update[lengths.cpu()[update].argsort(stable=True)] for update in updates]
    rows = [part for update in by_length for part in update.chunk(per_update)]
    return [_trimmed(scored, part.to(lengths.device)) for part in rows]


def _trimmed(scored: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    prompt_width, completion_width = scored["prompt_mask"].shape[1], scored["completion_mask"].shape[1]
    prompt = int(scored["prompt_mask"][rows].sum(1).max())
    completion = max(1, int(scored["completion_mask"][rows].sum(1).max()))
    batch = {}
    for name, value in scored.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:  # a number about the whole generation
            batch[name] = value
        elif name.startswith("prompt_"):
            batch[name] = value[rows][:, prompt_width - prompt :]
        elif value.ndim > 1 and value.shape[1] == completion_width:
            batch[name] = value[rows][:, :completion]
        else:
            batch[name] = value[rows]
    return batch


def real_positions(batches: list[dict[str, Any]]) -> float:
    """Share of the positions a forward pass computes that hold tokens rather than padding."""
    masks = [batch[name] for batch in batches for name in ("prompt_mask", "completion_mask")]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
