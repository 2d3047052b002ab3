"""An explicit memory that reads sentences by their mean: after chosen layers each token looks up a row of a bank.

`h ← h + fusion(norm(h), row)`, in every layer by product keys of its own; this is the published layout. A memory that
was just attached changes nothing, as the last matrix of its fusion is zero. `by_token` reads a row's tokens instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.errors import PosttrainError
from posttrain.memory.retrieval import MemoryGate, product_key_topk, projection


class MemoryFault(PosttrainError):
    """A memory that does not fit its model, its bank or its file."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory's shape; saved beside its weights. `layers` are numbers of decoder layers, ascending.

    reading: `mean` or `tokens`    router_layer: of `tokens`, the layer whose states find a question's row
    """

    layers: tuple[int, ...]
    knowledge_num: int
    knowledge_length: int
    pad_id: int
    knowledge_dim: int = 128
    num_candidates: int = 16
    gumbel_temperature: float = 1.0
    dropout: float = 0.0
    fusion_rank: int = 0
    gate_rank: int = 0
    reading: str = "mean"
    router_layer: int = 0


@dataclass(frozen=True)
class Reading:
    """What one layer read in the last forward pass, for every token.

    selected: (B, S) bank rows    candidates: (B, S, C) bank rows    row_scores, column_scores: (B, S, r)
    similarity: (B, S) cosine with the selected row
    diversity: (B, S) expected cosine of two different candidates drawn by their probabilities
    """

    selected: Tensor
    candidates: Tensor
    row_scores: Tensor
    column_scores: Tensor
    similarity: Tensor
    diversity: Tensor


class GatedMemoryFusion(nn.Module):
    """SwiGLU over the hidden state and the row that was read; zero at the start."""

    def __init__(self, hidden_size: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.gate_proj = projection(2 * hidden_size, hidden_size, rank)
        self.up_proj = projection(2 * hidden_size, hidden_size, rank)
        self.down_proj = projection(hidden_size, hidden_size, rank)
        self.dropout = nn.Dropout(dropout)
        last = self.down_proj[-1] if rank else self.down_proj
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        """x, row: (B, S, D) → (B, S, D)"""
        both = torch.cat([x, row], dim=-1)
        return self.dropout(self.down_proj(F.silu(self.gate_proj(both)) * self.up_proj(both)))


class MemoryBlock(nn.Module):
    """Norm, gate and fusion of one layer."""

    def __init__(self, hidden_size: int, eps: float, config: MemoryConfig) -> None:
        super().__init__()
        self.temperature, self.pad_id = config.gumbel_temperature, config.pad_id
        self.memory_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.memory_gate = MemoryGate(
            hidden_size, config.knowledge_num, config.knowledge_dim, config.gate_rank, config.num_candidates
        )
        self.gated_memory_fusion = GatedMemoryFusion(hidden_size, config.fusion_rank, config.dropout)

    def forward(self, hidden: Tensor, bank: Tensor, embedding: Tensor) -> tuple[Tensor, Reading]:
        """hidden: (B, S, D)    bank: (N, L) token ids    embedding: (V, D), frozen"""
        x = self.memory_norm(hidden.to(self.memory_norm.weight.dtype))
        row_scores, column_scores = self.memory_gate.scores(x)
        scores, candidates = product_key_topk(row_scores, column_scores, self.memory_gate.num_candidates)
        sentences = self._embed(bank[candidates], embedding).to(x.dtype)  # (B, S, C, D)
        similarity = F.cosine_similarity(x.unsqueeze(-2), sentences, dim=-1)
        # The gate's own scores take part in the choice: through the integer rows alone no gradient would reach it.
        logits = similarity + scores.log_softmax(dim=-1)
        weights, selected = self._select(logits)
        row = (weights.unsqueeze(-1) * sentences).sum(dim=-2)
        # Embeddings are some fifty times smaller than a normalised hidden state.
        row = F.rms_norm(row, row.shape[-1:], eps=self.memory_norm.eps)
        reading = Reading(
            selected=candidates.gather(-1, selected).squeeze(-1),
            candidates=candidates,
            row_scores=row_scores,
            column_scores=column_scores,
            similarity=(weights * similarity).sum(dim=-1),
            diversity=_expected_cosine(sentences, logits.softmax(dim=-1)),
        )
        return hidden + self.gated_memory_fusion(x, row).to(hidden.dtype), reading

    def _embed(self, ids: Tensor, embedding: Tensor) -> Tensor:
        """The mean embedding of each sentence, padding left out; zero for an empty one.  (…, L) → (…, D)"""
        flat = F.embedding_bag(ids.flatten(0, -2), embedding, mode="mean", padding_idx=self.pad_id)
        return flat.view(*ids.shape[:-1], embedding.shape[-1])

    def _select(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot weights and their place; in training drawn by Gumbel noise, with the gradient of the softmax."""
        if not self.training:
            selected = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, selected, 1.0), selected
        weights = F.gumbel_softmax(logits, tau=self.temperature, hard=True, dim=-1)
        return weights, weights.argmax(dim=-1, keepdim=True)


def _expected_cosine(sentences: Tensor, probabilities: Tensor) -> Tensor:
    """Weighted by the probabilities, as the frozen sentences alone would make a constant.  (B, S, C, D), (B, S, C)"""
    unit = F.normalize(sentences, dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    pairs = probabilities.unsqueeze(-1) * probabilities.unsqueeze(-2)
    different = ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return (cosines * pairs * different).sum(dim=(-1, -2))


class ExplicitMemory(nn.Module):
    """A model's memory: its bank, and what its layers read last. `bank` is a buffer that no state dict holds.

    starts: (B,) places of the prompts' last tokens in the next forward pass, None where that is the last place
    given: (B,) bank rows that shall be read whatever is found, -1 where none
    """

    layers: nn.ModuleDict

    def __init__(self, config: MemoryConfig, bank: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("bank", bank, persistent=False)
        self.enabled = True
        self.starts: Tensor | None = None
        self.given: Tensor | None = None
        self.readings: dict[int, Any] = {}

    @property
    def hooked_layers(self) -> tuple[int, ...]:
        """The layers whose hidden states the memory sees."""
        return self.config.layers

    def begin(self, ids: Tensor, mask: Tensor | None, continues: bool) -> None:
        """Called before every forward pass of the model.

        ids: (B, S)    mask: (B, S), longer where the pass continues after the cache of earlier tokens
        """

    def read(
        self, layer: int, hidden: Tensor, embedding: Tensor, checkpointing: bool, head: Tensor | None = None
    ) -> Tensor:
        """The layer's hidden state with what it read, (B, S, D); what was read is kept in `readings`."""
        raise NotImplementedError

    def figures(self, mask: Tensor, facts: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Auxiliary losses and figures of the last forward pass.

        mask, facts: (B, S), tokens that are no padding, and those that ask for the fact of bank row `index`, (B,).
        """
        raise NotImplementedError

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """Every prompt of the last forward pass so many times, for several continuations of it."""
        yield

    @contextmanager
    def with_rows(self, rows: Tensor, sentences: Tensor) -> Iterator[None]:
        """The bank with other sentences in some rows, while the block lasts.  rows: (E,)    sentences: (E, L)

        Forward and backward pass belong into one block, as checkpointing reads the bank again.
        """
        before = self.bank[rows].clone()
        self.bank[rows] = sentences.to(self.bank.device)
        try:
            yield
        finally:
            self.bank[rows] = before

    @contextmanager
    def with_bank(self, bank: Tensor, states: Tensor | None = None) -> Iterator[None]:
        """Another bank of the same shape, while the block lasts; `states` are for a memory that finds rows by them."""
        before = self.bank
        self.bank = bank.to(before.device)
        try:
            yield
        finally:
            self.bank = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The frozen model alone, while the block lasts."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True


class MeanMemory(ExplicitMemory):
    """One block a layer, each with a lookup of its own for every token."""

    def __init__(self, hidden_size: int, eps: float, config: MemoryConfig, bank: Tensor) -> None:
        super().__init__(config, bank)
        self.layers = nn.ModuleDict({str(layer): MemoryBlock(hidden_size, eps, config) for layer in config.layers})

    def read(
        self, layer: int, hidden: Tensor, embedding: Tensor, checkpointing: bool, head: Tensor | None = None
    ) -> Tensor:
        block = self.layers[str(layer)]
        if checkpointing and self.training:
            hidden, reading = checkpoint(block, hidden, self.bank, embedding, use_reentrant=False)
        else:
            hidden, reading = block(hidden, self.bank, embedding)
        self.readings[layer] = reading
        return hidden

    def figures(self, mask: Tensor, facts: Tensor, index: Tensor) -> dict[str, Tensor]:
        return auxiliary(list(self.readings.values()), mask, facts, index)


def auxiliary(readings: list[Reading], mask: Tensor, facts: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Losses and figures of a batch, means over layers.

    mask, facts: (B, S), tokens that are no padding, and those that ask for the fact of bank row `index`, (B,).
    """
    target = index[:, None].expand_as(facts)[facts]
    r = readings[0].row_scores.shape[-1]
    count = max(1, len(target))
    sums = dict.fromkeys(("loss_similarity", "loss_diversity", "loss_router", "hit_rate", "candidate_recall"), 0.0)
    for reading in readings:
        sums["loss_similarity"] -= reading.similarity[mask].mean()
        sums["loss_diversity"] += reading.diversity[mask].mean()
        rows = F.cross_entropy(reading.row_scores[facts].float(), target // r, reduction="sum")
        columns = F.cross_entropy(reading.column_scores[facts].float(), target % r, reduction="sum")
        sums["loss_router"] += (rows + columns) / count
        sums["hit_rate"] += (reading.selected[facts] == target).sum() / count
        sums["candidate_recall"] += (reading.candidates[facts] == target[:, None]).any(dim=-1).sum() / count
    return {name: value / len(readings) for name, value in sums.items()}
