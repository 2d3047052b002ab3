"""Product keys: the C best of r² rows by looking at 2·r keys (Lample et al. 2019, arXiv:1907.05242)."""

import math

import torch
from torch import Tensor, nn


def product_key_topk(row_scores: Tensor, column_scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest sums `row_scores[i] + column_scores[j]` and the bank rows i·r + j they belong to.

    Exact: a sum among the best has both its parts among the best of their own.

    Args: row_scores, column_scores (…, r).  Returns: scores and rows, both (…, min(count, r)), best first.
    """
    r = row_scores.shape[-1]
    count = min(count, r)
    first, i = row_scores.topk(count, dim=-1)
    second, j = column_scores.topk(count, dim=-1)
    sums = (first[..., :, None] + second[..., None, :]).flatten(-2)
    rows = (i[..., :, None] * r + j[..., None, :]).flatten(-2)
    scores, best = sums.topk(count, dim=-1)
    return scores, rows.gather(-1, best)


class MemoryGate(nn.Module):
    """Scores the bank's rows for hidden states. keys: (2, r, key_dim/2) for a bank of r² rows."""

    def __init__(self, hidden_size: int, knowledge_num: int, key_dim: int, rank: int, num_candidates: int) -> None:
        super().__init__()
        r = math.isqrt(knowledge_num)
        self.num_candidates = num_candidates
        self.gate_proj = projection(hidden_size, key_dim, rank)
        # At this scale a score is of order one, so that softmax over r of them starts soft.
        self.keys = nn.Parameter(torch.randn(2, r, key_dim // 2) / math.sqrt(key_dim // 2))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the two halves of a row's number.  x: (…, D) → (…, r) each"""
        first, second = self.gate_proj(x).chunk(2, dim=-1)
        return first @ self.keys[0].T, second @ self.keys[1].T


def projection(inputs: int, outputs: int, rank: int) -> nn.Module:
    """A matrix without bias, or with `rank` the product of two."""
    if not rank:
        return nn.Linear(inputs, outputs, bias=False)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))
