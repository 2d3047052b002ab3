"""Check that a server has the trainer's weights: its log-probabilities of fixed tokens must be the trainer's.

A lost weight sync goes unnoticed otherwise: rewards still rise for a while, and importance sampling hides the rest.
"""

from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from posttrain.errors import PosttrainError

SEQUENCES = 4
TOKENS = 128  # of each; a wrong rotary base shows at far positions


class StaleWeightsError(PosttrainError):
    """vLLM computes with other weights than the trainer."""


def sequences(prompts: list[str], tokenizer: Any) -> list[list[int]]:
    """Fixed token sequences: training prompts, one after another, cut to length."""
    ids = tokenizer("\n".join(prompts[: 8 * SEQUENCES]), add_special_tokens=False)["input_ids"]
    cut = [ids[start : start + TOKENS] for start in range(0, SEQUENCES * TOKENS, TOKENS)]
    return [sequence for sequence in cut if len(sequence) > 1]


@torch.no_grad()
def log_probabilities(model: Any, asked: list[list[int]]) -> list[list[float]]:
    """Of each token but the first, given those before it, at temperature 1."""
    found = []
    for sequence in asked:
        ids = torch.tensor([sequence], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist())
    return found


def measured(model: Any, client: Any, asked: list[list[int]]) -> tuple[float, float]:
    """Mean and largest `difference` between a model and the server of TRL's `client`, which the main process has."""
    ours, theirs = log_probabilities(model, asked), [None]
    if client is not None:
        scored = client.get_sequence_logprobs(asked, [1] * len(asked), top_logprobs=1)
        theirs = [[[token[0] for token in sequence] for sequence in scored["actual_logprobs"]]]
    broadcast_object_list(theirs, from_process=0)
    return difference(ours, theirs[0])


def difference(ours: list[list[float]], theirs: list[list[float]]) -> tuple[float, float]:
    """Mean and largest absolute difference over all tokens."""
    gaps = [abs(a - b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    return sum(gaps) / len(gaps), max(gaps)


def check(mean: float, tolerance: float, what: str) -> None:
    """Raise StaleWeightsError where the mean difference is larger than allowed, or not a number."""
    if not mean <= tolerance:
        raise StaleWeightsError(
            f"canary: {what}: vLLM's log-probabilities differ from the trainer's by {mean:.3g} nats on average, and "
            f"canary_tolerance is {tolerance}: it did not get the weights, or runs with another rotary base or dtype"
        )
