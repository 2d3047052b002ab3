"""Cut a batch of completions into micro-batches by length, so that little of what is computed is padding.

Completions without an advantage come first, in micro-batches of their own as far as they fill them: those need no
forward pass, as neither they nor the weights' gradient would be other than 0.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType

SILENT = "silent"  # the key of a micro-batch that no process computes
REPLICAS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # each has whole weights


def micro_batches(
    scored: dict[str, Any], number: int, per_update: int, silent_first: bool = False
) -> list[dict[str, Any]]:
    """`number` micro-batches of one generation; those of one optimizer step are sorted by length and trimmed.

    Which completions share an optimizer step stays random, so that no step sees the short ones alone. `scored` is TRL's
    dictionary: prompts padded on the left, completions on the right, and whatever has a row for each.
    """
    lengths = scored["completion_mask"].sum(1)
    # Where the two kinds meet in one micro-batch, both are short.
    places = lengths.where(scored["advantages"] != 0, -lengths) if silent_first else lengths
    order = torch.randperm(len(lengths))
    updates = order.chunk(number // per_update)
    by_length = [update[places.cpu()[update].argsort(stable=True)] for update in updates]
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


def only_advantages(trainer: Any) -> bool:
    """Whether the loss is 0 for each completion without an advantage, whichever others share its micro-batch."""
    other_terms = trainer.beta != 0 or trainer._entropy_bonus_enabled or trainer.aux_loss_enabled
    divided_by_neighbours = trainer.loss_type == "bnpo"
    replicas = trainer.accelerator.distributed_type in REPLICAS
    return replicas and not other_terms and not divided_by_neighbours


def note_silent(batches: list[dict[str, Any]], per_update: int, accelerator: Accelerator) -> int:
    """Mark micro-batches in which no process has an advantage, all but the last of an update; how many completions.

    The last one runs in any case: gradients are summed over processes there, and TRL's figures need one.
    """
    loud = torch.tensor([[bool(batch["advantages"].any()) for batch in batches]], device=accelerator.device)
    for i, heard in enumerate(accelerator.gather(loud).any(0).tolist()):
        batches[i][SILENT] = not heard and (i + 1) % per_update != 0
    return sum(len(batch["advantages"]) for batch in batches if batch[SILENT]) * accelerator.num_processes


def real_positions(batches: list[dict[str, Any]]) -> float:
    """Share of the positions that forward passes compute which hold tokens rather than padding."""
    computed = [batch for batch in batches if not batch.get(SILENT)]
    masks = [batch[name] for batch in computed for name in ("prompt_mask", "completion_mask")]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
