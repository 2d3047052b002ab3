"""The memory that reads token by token: one retrieval a question, at an early layer, shared by all reading layers.

A question is routed where its answer begins, by what the frozen model says of its prompt; every token from there on
reads the row that was chosen then, in later steps of generation too. Where no row fits, nothing is read, and the model
is exactly the frozen one; so it is before the answer begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.memory.by_token.comparison import Comparison
from posttrain.memory.by_token.reader import TokenReader
from posttrain.memory.by_token.router import NONE, Router, nearest
from posttrain.memory.by_token.states import pooled
from posttrain.memory.layer import ExplicitMemory, MemoryConfig


@dataclass(frozen=True)
class Prompt:
    """What one forward pass is about.  ids, mask: (B, S)"""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Route:
    """What a question's answer reads.

    selected: (B,) bank rows or NONE    chosen: (B,), the gate's own choice, where training reads another row
    candidates: (B, C)
    starts: (B,) places of the prompts' last tokens, 0 in a later step of generation
    """

    selected: Tensor
    chosen: Tensor
    candidates: Tensor
    starts: Tensor


@dataclass(frozen=True)
class TokenReading:
    """What was read in the last forward pass.  selected: (B, S), NONE where nothing was    candidates: (B, S, C)"""

    selected: Tensor
    candidates: Tensor


class TokenGate(nn.Module):
    """Chooses a question's row: the router finds candidates, the comparison takes one of them or none."""

    def __init__(self, hidden_size: int, config: MemoryConfig, bank: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.router = Router(hidden_size, config.knowledge_dim)
        self.comparison = Comparison(hidden_size, config.knowledge_length, bank, config.pad_id, vocabulary)


class TokenMemory(ExplicitMemory):
    """Gate and readers of a model, the bank, and the frozen states its rows are found by."""

    def __init__(
        self, hidden_size: int, eps: float, config: MemoryConfig, bank: Tensor, states: Tensor, vocabulary: int
    ) -> None:
        super().__init__(config, bank)
        self.memory_gate = TokenGate(hidden_size, config, bank, vocabulary)
        self.layers = nn.ModuleDict(
            {
                str(layer): TokenReader(hidden_size, eps, config.knowledge_dim, config.knowledge_length, config.pad_id)
                for layer in config.layers
            }
        )
        self.register_buffer("states", states, persistent=False)
        self.register_buffer("keys", torch.zeros(len(bank), config.knowledge_dim), persistent=False)
        self.prompt: Prompt | None = None
        self.route: Route | None = None
        self.register_load_state_dict_post_hook(lambda memory, _: memory.set_keys())
        self.set_keys()

    @property
    def hooked_layers(self) -> tuple[int, ...]:
        return tuple(sorted({self.config.router_layer, *self.config.layers}))

    @torch.no_grad()
    def set_keys(self) -> None:
        """The rows' keys by the router as it is now."""
        self.keys = torch.cat([self.memory_gate.router.rows(piece) for piece in self.states.split(4096)])

    def begin(self, ids: Tensor, mask: Tensor | None, continues: bool) -> None:
        if continues:
            if self.route is not None:
                self.route = replace(self.route, starts=torch.zeros_like(self.route.starts))
            return
        self.route = None
        self.prompt = Prompt(ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool())

    def read(
        self, layer: int, hidden: Tensor, embedding: Tensor, checkpointing: bool, head: Tensor | None = None
    ) -> Tensor:
        if layer == self.config.router_layer and self.route is None:
            self.route = self._routed(hidden.detach(), embedding)
        if layer not in self.config.layers or self.route is None:
            return hidden
        route, block = self.route, self.layers[str(layer)]
        answering = torch.arange(hidden.shape[1], device=hidden.device) >= route.starts[:, None]
        reads = answering & (route.selected != NONE)[:, None]
        rows = self.bank[route.selected.clamp(min=0)]
        self.readings[layer] = TokenReading(
            torch.where(reads, route.selected[:, None], NONE),
            route.candidates[:, None].expand(-1, hidden.shape[1], -1),
        )
        if not self.training and not reads.any():
            return hidden
        arguments = (hidden, rows, reads, embedding, embedding if head is None else head)
        if checkpointing and self.training:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    @torch.no_grad()
    def _routed(self, hidden: Tensor, embedding: Tensor) -> Route:
        """The choice of each question.  hidden: (B, S, D), after the router's layer"""
        prompt = self.prompt
        last = torch.full_like(prompt.ids[:, 0], prompt.ids.shape[1] - 1)
        starts = last if self.starts is None else self.starts
        mask = question_mask(prompt.mask, starts)
        similarity, candidates = self.candidates(question_states(hidden, mask, starts))
        logits = self.compare(prompt.ids, mask, candidates, similarity, embedding)
        selected = chosen = self.choose(logits, candidates)
        if self.given is not None:  # training reads the right row, where it is known
            selected = torch.where(self.given >= 0, self.given, chosen)
        return Route(selected, chosen, candidates, starts)

    def candidates(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and rows of the nearest, (B, C) each.  states: (B, 2·D) of questions"""
        filled = (self.bank != self.config.pad_id).any(dim=1)
        found = self.memory_gate.router.questions(states)
        return nearest(found, self.keys, filled, self.config.num_candidates)

    def compare(self, ids: Tensor, mask: Tensor, candidates: Tensor, similarity: Tensor, embedding: Tensor) -> Tensor:
        """Scores of the candidates and of none, (B, C + 1)."""
        return self.memory_gate.comparison(ids, mask, self.bank[candidates], similarity, embedding)

    @staticmethod
    def choose(logits: Tensor, candidates: Tensor) -> Tensor:
        """The best candidate's row, or NONE.  (B, C + 1), (B, C) → (B,)"""
        rows = torch.cat([candidates, torch.full_like(candidates[:, :1], NONE)], dim=1)
        return rows.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        before = self.route
        if before is not None:
            parts = {name: part.repeat_interleave(times, dim=0) for name, part in vars(before).items()}
            self.route = Route(**parts)
        try:
            yield
        finally:
            self.route = before

    @contextmanager
    def with_bank(self, bank: Tensor, states: Tensor | None = None) -> Iterator[None]:
        """Another bank, while the block lasts, and the states of its rows; without them rows keep the keys they had."""
        before = self.states, self.keys
        try:
            if states is not None:
                self.states = states.to(before[0].device)
                self.set_keys()
            with super().with_bank(bank):
                yield
        finally:
            self.states, self.keys = before

    def figures(self, mask: Tensor, facts: Tensor, index: Tensor) -> dict[str, Tensor]:
        """How often the gate chose the right row, and had it among its candidates; training reads it in any case."""
        known = index >= 0
        right, count = index[known], max(1, int(known.sum()))
        found = (self.route.candidates[known] == right[:, None]).any(dim=-1)
        return {"hit_rate": (self.route.chosen[known] == right).sum() / count, "candidate_recall": found.sum() / count}


def question_mask(mask: Tensor, starts: Tensor) -> Tensor:
    """The tokens of a prompt, its first left out, on which every model's attention rests.  (B, S), (B,) → (B, S)"""
    places = torch.arange(mask.shape[1], device=mask.device)
    first = mask.int().argmax(dim=1)
    return mask & (places > first[:, None]) & (places <= starts[:, None])


def question_states(hidden: Tensor, mask: Tensor, starts: Tensor) -> Tensor:
    """The mean over a prompt's tokens, and the state where the answer begins.  (B, S, D) → (B, 2·D)"""
    last = hidden[torch.arange(len(hidden), device=hidden.device), starts].float()
    return torch.cat([pooled(hidden, mask), last], dim=-1)
