"""Attention of completions in slots: whole prompts one behind the other, without padding, then one token a row."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from posttrain.models.packed_attention import varlen_sdpa

NAME = "slots"


def slot_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention of each prompt to itself; where there is a mask, of the newest token of each row to its slot.

    query: (B, heads, Q, d)    key, value: (B, key heads, K, d)    attention_mask: (B, 1, 1, K), true where it sees
    returns: (B, Q, heads, d) and no weights. Prompts have B 1 and their boundaries in `cu_seq_lens_q`; steps have Q 1.
    """
    if attention_mask is None:
        return varlen_sdpa(module, query, key, value, None, scaling, **options)
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, size)  # heads of one key head as queries: no key is repeated
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, slot_attention)


@contextmanager
def attending_in_slots(config: PretrainedConfig) -> Iterator[None]:
    """The models of this configuration attend in slots inside the block, and as before after it."""
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
