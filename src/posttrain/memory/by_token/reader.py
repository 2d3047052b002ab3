"""Reading a row token by token: attention from the hidden state, late enough for the head to speak what was read.

The value of a token starts as its own embedding, which a tied head turns into the token; so the reader has to learn
where to look, not what to say. It looks by what a token is, what stands before it, and where it stands from both ends:
with the token before it a copy can go on.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenFusion(nn.Module):
    """Attention over the tokens of one row, gated, in the scale of the residual stream."""

    def __init__(self, hidden_size: int, dimensions: int, knowledge_length: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, dimensions)
        self.key = nn.Linear(hidden_size, dimensions)
        self.key_before = nn.Linear(hidden_size, dimensions, bias=False)
        self.from_start = nn.Parameter(torch.randn(knowledge_length, dimensions) * 0.02)
        self.from_end = nn.Parameter(torch.randn(knowledge_length, dimensions) * 0.02)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.eye_(self.value.weight)
        self.gate = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.gate.weight)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, heard: Tensor, spoken: Tensor, is_token: Tensor) -> Tensor:
        """x: (B, S, D), normalised    heard, spoken: (B, L, D), a row's embeddings of input and head, normalised
        is_token: (B, L)    Returns: (B, S, D), of size one where the gate is open
        """
        length = is_token.shape[1]
        from_end = (is_token.sum(dim=1, keepdim=True) - 1 - torch.arange(length, device=x.device)).clamp(min=0)
        keys = self.key(heard) + self.key_before(F.pad(heard, (0, 0, 1, 0))[:, :-1])
        keys = keys + self.from_start[:length] + self.from_end[from_end]
        scores = self.query(x) @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        weights = scores.masked_fill(~is_token[:, None], torch.finfo(scores.dtype).min).softmax(dim=-1)
        return torch.sigmoid(self.gate(x)) * self.scale * self.value(weights @ spoken)


class TokenReader(nn.Module):
    """Norm and fusion of one layer."""

    def __init__(self, hidden_size: int, eps: float, dimensions: int, knowledge_length: int, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.memory_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.gated_memory_fusion = TokenFusion(hidden_size, dimensions, knowledge_length)

    def forward(self, hidden: Tensor, rows: Tensor, reads: Tensor, embedding: Tensor, head: Tensor) -> Tensor:
        """hidden: (B, S, D)    rows: (B, L) token ids    reads: (B, S), which tokens read; the others stay as they are
        embedding, head: (V, D), frozen    Returns: (B, S, D)
        """
        is_token = rows != self.pad_id
        heard, spoken = (F.rms_norm(matrix[rows].float(), matrix.shape[-1:]) for matrix in (embedding, head))
        x = hidden.to(self.memory_norm.weight.dtype)
        read = self.gated_memory_fusion(self.memory_norm(x), heard, spoken, is_token)
        size = x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        reads = reads[..., None] & is_token.any(dim=1)[:, None, None]
        return torch.where(reads, hidden + (read * size).to(hidden.dtype), hidden)
