"""Which rows may answer a question: two linear maps into one space, over what the frozen model says of both.

The states come from an early layer: of a row the mean over its tokens, of a question the mean over its tokens and the
state where its answer begins. There is one search a question, not one a token, so it looks at every row: 2^20 rows of
256 dimensions are one product of a matrix and a vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 20.0  # of the cosines' softmax
NONE = -1  # the row of a question that no row answers
FLOOR = 1e-3  # of a dimension's spread


class Standard(nn.Module):
    """Each dimension with mean 0 and spread 1 over the states it was set from: a few of a model's are huge."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def set_from(self, states: Tensor) -> None:
        """states: (n, size)"""
        self.mean.copy_(states.float().mean(dim=0))
        self.spread.copy_(states.float().std(dim=0, unbiased=False) + FLOOR)

    def forward(self, states: Tensor) -> Tensor:
        return (states.float() - self.mean) / self.spread


class Router(nn.Module):
    """Questions and rows as unit vectors; their cosine says how likely a row answers a question."""

    def __init__(self, hidden_size: int, dimensions: int) -> None:
        super().__init__()
        self.question_standard, self.row_standard = Standard(2 * hidden_size), Standard(hidden_size)
        self.question_proj = nn.Linear(2 * hidden_size, dimensions)
        self.row_proj = nn.Linear(hidden_size, dimensions)

    def questions(self, states: Tensor) -> Tensor:
        """(B, 2·D) → (B, d)"""
        return F.normalize(self.question_proj(self.question_standard(states)), dim=-1)

    def rows(self, states: Tensor) -> Tensor:
        """(n, D) → (n, d)"""
        return F.normalize(self.row_proj(self.row_standard(states)), dim=-1)


def nearest(questions: Tensor, keys: Tensor, filled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best rows of each question by cosine, best first; where all others are empty, NONE with -inf.

    questions: (B, d)    keys: (N, d)    filled: (N,)    Returns: scores and rows, both (B, min(count, N)).
    """
    scores = (questions @ keys.T).masked_fill(~filled, float("-inf"))
    best, rows = scores.topk(min(count, len(keys)), dim=-1)
    return best, rows.masked_fill(best.isneginf(), NONE)
