"""An explicit memory inside a frozen model: after chosen layers each token looks up a row of a bank of sentences.

The model keeps its class, its parameters and `generate()`: `attach` hangs `model.memory` beside the layers and a hook
on each chosen one, `h ← h + fusion(norm(h), row)`. A memory that was just attached changes nothing, as the last matrix
of its fusion is zero.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from posttrain.errors import PosttrainError
from posttrain.memory.retrieval import MemoryGate, product_key_topk, projection

ARCHITECTURES = ("qwen2", "qwen3")


class MemoryFault(PosttrainError):
    """A memory that does not fit its model, its bank or its file."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory's shape; saved beside its weights. `layers` are numbers of decoder layers, ascending."""

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
    """The blocks of a model, their bank, and what they read last. `bank` is a buffer that no state dict holds."""

    def __init__(self, hidden_size: int, eps: float, config: MemoryConfig, bank: Tensor) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict({str(layer): MemoryBlock(hidden_size, eps, config) for layer in config.layers})
        self.register_buffer("bank", bank, persistent=False)
        self.enabled = True
        self.readings: dict[int, Reading] = {}

    def read(self, layer: int, hidden: Tensor, embedding: Tensor, checkpointing: bool) -> Tensor:
        """The layer's hidden state with what it read; what was read is kept in `readings`."""
        block = self.layers[str(layer)]
        if checkpointing and self.training:
            hidden, reading = checkpoint(block, hidden, self.bank, embedding, use_reentrant=False)
        else:
            hidden, reading = block(hidden, self.bank, embedding)
        self.readings[layer] = reading
        return hidden

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
    def with_bank(self, bank: Tensor) -> Iterator[None]:
        """Another bank of the same shape, while the block lasts."""
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


def spaced_layers(layers: list[int] | int, num_layers: int) -> tuple[int, ...]:
    """Layer numbers: as listed, or so many of them at equal distances, the last layer among them."""
    if isinstance(layers, int):
        if not 1 <= layers <= num_layers:
            raise MemoryFault(f"memory_layers: {layers}: expected 1 to {num_layers}, the layers of the model")
        return tuple((i + 1) * num_layers // layers - 1 for i in range(layers))
    if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < num_layers:
        raise MemoryFault(f"memory_layers: {layers}: expected ascending numbers from 0 to {num_layers - 1}")
    return tuple(layers)


def attach(model: PreTrainedModel, config: MemoryConfig, bank: Tensor) -> ExplicitMemory:
    """Freeze the model and hang a memory into it as `model.memory`, in float32; raises where it cannot have one."""
    if model.config.model_type not in ARCHITECTURES:
        raise MemoryFault(f"{model.config.model_type}: a memory can be attached to {' and '.join(ARCHITECTURES)}")
    if hasattr(model, "memory"):
        raise MemoryFault(f"{type(model).__name__} already has a memory; load the model again")
    if bank.shape != (config.knowledge_num, config.knowledge_length):
        raise MemoryFault(f"the bank has shape {list(bank.shape)}, but the memory was made for {config}")
    model.requires_grad_(False)
    memory = ExplicitMemory(model.config.hidden_size, model.config.rms_norm_eps, config, bank).to(model.device)
    model.memory = memory.train(model.training)
    for layer in config.layers:
        model.model.layers[layer].register_forward_hook(_hook(model, layer))
    return memory


def _hook(model: PreTrainedModel, layer: int) -> Callable[..., Tensor | None]:
    def read(decoder_layer: nn.Module, _inputs: Any, hidden: Tensor) -> Tensor | None:
        memory = model.memory
        if not memory.enabled:
            return None
        # transformers recomputes the layer's forward alone, hooks are outside of it.
        return memory.read(layer, hidden, model.get_input_embeddings().weight, decoder_layer.gradient_checkpointing)

    return read


def freeze_report(model: PreTrainedModel) -> str:
    """What is trained and what is not, in the lines that users of the original look for."""
    counts = {trains: sum(p.numel() for p in model.parameters() if p.requires_grad == trains) for trains in (0, 1)}
    return "\n".join(
        [
            "🔒 冻结Qwen主模型参数...",
            "✅ 参数冻结完成:",
            f"  冻结参数: {counts[0] / 1e6:.2f} 百万",
            f"  可训练参数: {counts[1] / 1e6:.2f} 百万",
            f"  冻结比例: {counts[0] / (counts[0] + counts[1]):.2%}",
        ]
    )
