"""Where greedy completions of two samplers first part, and how near to each other the two best tokens are there."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

# Two samplers of the same bfloat16 weights round at other places. They may part only where the two best logits are
# nearer to each other than this: two steps of bfloat16 at logits between 16 and 32.
EPSILON = {torch.bfloat16: 0.25, torch.float32: 1e-3}


@dataclass(frozen=True)
class Divergence:
    """Completion `index` parts at its token `position`, where the two largest logits lie `gap` apart."""

    index: int
    position: int
    gap: float
    tokens: tuple[int | None, int | None]  # None where a completion has ended


@torch.inference_mode()
def divergences(
    model: PreTrainedModel, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]
) -> list[Divergence]:
    """First divergences of completions that differ; gaps are those of `model`, which should not be rounded itself."""
    found = []
    for index, (prompt, one, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        if one == other:
            continue
        position = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        ids = torch.tensor([prompt + one[:position]], device=model.device)
        largest = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float().topk(2).values
        tokens = tuple(ids[position] if position < len(ids) else None for ids in (one, other))
        found.append(Divergence(index, position, float(largest[0] - largest[1]), tokens))
    return found
