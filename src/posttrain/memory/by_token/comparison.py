"""Which of the candidates answers a question, or none: late interaction of the question's tokens with each row's.

Every token of one side looks for its like on the other (as in ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832),
weighted by how rare it is in the bank. That a question's words are missing in a row, and a row's words in the question,
speaks against the row; so does, for no row at all, that nothing fits well.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIMENSIONS = 128


class Comparison(nn.Module):
    """Scores of candidates and, last, of none of them."""

    def __init__(self, hidden_size: int, knowledge_length: int, bank: Tensor, pad_id: int, vocabulary: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.proj = nn.Linear(hidden_size, DIMENSIONS, bias=False)
        nn.init.normal_(self.proj.weight, std=1 / math.sqrt(DIMENSIONS))  # keeps cosines on average
        self.proj_before = nn.Linear(hidden_size, DIMENSIONS, bias=False)  # of the token before: who does what to whom
        nn.init.zeros_(self.proj_before.weight)
        # How much a token weighs: of the question, of the row where it has its like, and where it has none.
        self.weights = nn.Linear(hidden_size, 3)
        nn.init.zeros_(self.weights.weight)
        with torch.no_grad():
            self.weights.bias.copy_(torch.tensor([0.5, 0.0, -1.5]))
        # A row's object is expected to have no like, and stands at its end.
        self.from_start = nn.Parameter(torch.zeros(knowledge_length, 2))
        self.from_end = nn.Parameter(torch.zeros(knowledge_length, 2))
        self.steepness, self.threshold = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.6))
        self.router_weight = nn.Parameter(torch.tensor(1.0))
        self.sharpness = nn.Parameter(torch.tensor(3.0))
        self.none = nn.Parameter(torch.tensor([0.0, 0.7]))  # constant, and share of what a perfect row would score
        self.register_buffer("rarity", rarity(bank, pad_id, vocabulary), persistent=False)

    def forward(self, asked: Tensor, mask: Tensor, rows: Tensor, similarity: Tensor, embedding: Tensor) -> Tensor:
        """asked, mask: (B, T) token ids of questions    rows: (B, C, L)    similarity: (B, C), the router's cosines;
        -inf where a row is empty    embedding: (V, D), frozen    Returns: (B, C + 1)
        """
        used, places = torch.cat([asked.flatten(), rows.flatten()]).unique(return_inverse=True)
        vectors = F.rms_norm(embedding[used].float(), embedding.shape[-1:])
        weights, rare = self.weights(vectors), self.rarity[used]
        of_asked, of_rows = places[: asked.numel()].view_as(asked), places[asked.numel() :].view_as(rows)
        own, before = self.proj(vectors), self.proj_before(vectors)
        cosine = torch.einsum("btd,bcld->bctl", _unit(own, before, of_asked), _unit(own, before, of_rows))
        like = torch.sigmoid(self.steepness * (cosine - self.threshold))
        is_token = rows != self.pad_id
        like = like * mask[:, None, :, None] * is_token[:, :, None, :]
        value = F.softplus(weights[of_asked][..., 0]) * rare[of_asked] * mask  # (B, T)
        found = (value[:, None] * like.amax(dim=3)).sum(dim=2)
        row_weights = self._row_weights(weights[of_rows], is_token) * rare[of_rows][..., None] * is_token[..., None]
        fits = like.amax(dim=2)  # (B, C, L)
        found = found + (row_weights[..., 0] * fits - row_weights[..., 1] * (1 - fits)).sum(dim=2)
        none = self.none[0] + self.none[1] * value.sum(dim=1)
        empty = similarity.isneginf()
        scores = found + self.router_weight * similarity.masked_fill(empty, 0.0)  # 0 · inf has no gradient
        scores = self.sharpness * torch.cat([scores, none[:, None]], dim=1)
        return scores.masked_fill(F.pad(empty, (0, 1)), float("-inf"))

    def _row_weights(self, of_tokens: Tensor, is_token: Tensor) -> Tensor:
        """Weights of a row's tokens that have their like, and that have none, by what and where they are.

        of_tokens: (B, C, L, 3)    is_token: (B, C, L)    Returns: (B, C, L, 2)
        """
        length = is_token.shape[-1]
        place = torch.arange(length, device=is_token.device)
        from_end = (is_token.sum(dim=-1, keepdim=True) - 1 - place).clamp(min=0)
        return F.softplus(of_tokens[..., 1:] + self.from_start[:length] + self.from_end[from_end])


def _unit(own: Tensor, before: Tensor, places: Tensor) -> Tensor:
    """Unit vectors of tokens with those before them.  own, before: (U, d)    places: (…, L) → (…, L, d)"""
    return F.normalize(own[places] + F.pad(before[places], (0, 0, 1, 0))[..., :-1, :], dim=-1)


def rarity(bank: Tensor, pad_id: int, vocabulary: int) -> Tensor:
    """How rare each token is, from 0 in all rows to 1 in one or none: log(rows / rows with it) / log(rows).  (V,)"""
    ordered = bank.sort(dim=1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]  # a token counts once a row
    counts = torch.bincount(ordered[first & (ordered != pad_id)].flatten(), minlength=vocabulary)[:vocabulary]
    filled = int((bank != pad_id).any(dim=1).sum())
    return (filled / counts.clamp(min=1)).log().clamp(min=0).float() / math.log(max(2, filled))
