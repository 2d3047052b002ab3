"""The head of a language model on labelled positions alone: prompts and padding need no logits.

The head of a model of half a billion parameters over 151,936 words costs a third of what its layers do, and its logits
are the largest tensor of a step. In fine-tuning, half of all positions and more are prompt or padding, which no loss
reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from posttrain.data.encode import IGNORED


@contextmanager
def labelled_only(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Inside, the model's logits are (N, V): those that predict the N labels, in the order of `targets(labels)`.

    model: a causal language model of transformers without its wrappers of several processes; an adapter may be in it.
    labels: (B, T), not shifted, -100 where nothing is trained.

    A hook on the head takes the rows out of its input, (B, T, H) → (N, H), so the forward pass still goes through
    whatever wraps the model.
    """
    positions = predicting(labels).flatten().nonzero().squeeze(-1)

    def take_rows(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        (hidden,) = arguments
        return (hidden.flatten(0, 1).index_select(0, positions),)

    hook = model.get_output_embeddings().register_forward_pre_hook(take_rows)
    try:
        yield
    finally:
        hook.remove()


def predicting(labels: Tensor) -> Tensor:
    """Where the next token has a label. (B, T) → (B, T); the last position predicts nothing."""
    return nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))


def targets(labels: Tensor) -> Tensor:
    """The labels that some position predicts. (B, T) → (N,)"""
    return labels[:, 1:][labels[:, 1:] != IGNORED]
