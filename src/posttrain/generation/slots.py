"""Generation in slots: a finished completion makes room for the next prompt at once, and nothing waits for the longest.

`generate` of transformers keeps every row until the last one ends, and copies the whole cache at each step. Here each
row stands at its own position in one preallocated cache; rows that end are replaced, or the batch shrinks.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from posttrain.errors import PosttrainError
from posttrain.generation.sample import Tick, unheard
from posttrain.generation.slot_attention import attending_in_slots

MASKABLE = ("sdpa", "eager", "varlen_sdpa")  # attention that takes a mask of ours
REFILL_AT = 0.75  # share of occupied slots below which new prompts are read, several at a time
SMALLEST_WIDTH = 256  # positions; the cache doubles from here
PROMPT_TOKENS = 2048  # read at once: enough for full speed, and few enough that buffers are used again
# Rows whose logits become probabilities at once on a CPU. glibc maps a buffer above 32 MiB anew each time, and to fill
# its pages with zeros takes longer than to draw the tokens: 64 rows of 151,936 words in 0.13 s whole, in 0.02 s by 8.
ROWS_AT_ONCE = 8


def cache_width(positions: int) -> int:
    """Positions of a cache that holds so many: it grows by doubling."""
    width = SMALLEST_WIDTH
    while width < positions:
        width *= 2
    return width


@dataclass
class Row:
    """One completion in the making. `uniforms` decide its tokens, whatever else is in the batch.

    Log-probability and entropy, where they are measured, are sums over its tokens, in nats at temperature 1.
    """

    index: int
    prompt: list[int]
    uniforms: torch.Tensor | None
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    entropy: float = 0.0

    @property
    def position(self) -> int:
        """Where the last token stands."""
        return len(self.prompt) + len(self.ids) - 1


class SlotCache(Cache):
    """Keys and values of rows at positions of their own. Per layer: (slots, heads, width, head_dim)."""

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots, self.width = slots, SMALLEST_WIDTH
        self.stores: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rows = self.positions = torch.empty(0, dtype=torch.long)
        self.seen = 0

    def write_to(self, rows: torch.Tensor, positions: torch.Tensor, seen: int) -> None:
        """Say where the next forward pass writes its N tokens: slots (N,), positions (N,).

        `seen` is how many positions of the first slots it attends to; 0 where prompts attend to themselves alone.
        """
        self.rows, self.positions, self.seen = rows, positions, seen
        self._grow(int(positions.max()) + 1)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what a layer computed, and return what its queries see. (B, heads, Q, head_dim) each, N = B × Q."""
        if layer_idx == len(self.stores):
            shape = (self.slots, keys.shape[1], self.width, keys.shape[3])
            self.stores.append((keys.new_zeros(shape), values.new_zeros(shape)))
        for store, new in zip(self.stores[layer_idx], (keys, values), strict=True):
            store[self.rows, :, self.positions] = new.transpose(1, 2).flatten(0, 1)
        if not self.seen:
            return keys, values
        stored_keys, stored_values = self.stores[layer_idx]
        n = len(self.rows)
        return stored_keys[:n, :, : self.seen], stored_values[:n, :, : self.seen]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of a slot into another one."""
        for stores in self.stores:
            for store in stores:
                store[target, :, :positions] = store[source, :, :positions]

    def _grow(self, width: int) -> None:
        self.width = max(self.width, cache_width(width))
        for layer, stores in enumerate(self.stores):
            if stores[0].shape[2] < self.width:
                grown = tuple(s.new_zeros((*s.shape[:2], self.width, s.shape[3])) for s in stores)
                for new, old in zip(grown, stores, strict=True):
                    new[:, :, : old.shape[2]] = old
                self.stores[layer] = grown


class SlotEngine:
    """Completes prompts with a causal language model of full attention. Greedy tokens are those of `generate`."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        config = model.config.get_text_config()
        if model.config._attn_implementation not in MASKABLE:
            raise PosttrainError(f"attention {model.config._attn_implementation!r}: expected one of {MASKABLE}")
        if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise PosttrainError(
                f"{config.model_type}: has layers without full attention; evaluate it on a vLLM server"
            )
        if any(layer.config is not config for layer in model.modules() if hasattr(layer, "layer_idx")):
            raise PosttrainError(
                f"{config.model_type}: its layers do not share one configuration; evaluate it on a vLLM server"
            )
        self.model, self.config, self.slots = model, config, slots

    def complete(
        self, prompts: Sequence[tuple[int, list[int]]], max_new_tokens: int, ended: Callable[[list[int]], bool],
        temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, tick: Tick = unheard,
    ) -> Iterator[tuple[int, list[int]]]:  # fmt: skip
        """(index, ids) of each prompt as it ends: when `ended` says so of its ids, which stay whole, or at the budget.

        A completion depends on seed and index, not on its neighbours. `tick` is told of every step's tokens.
        """
        for row in self.complete_rows(prompts, max_new_tokens, ended, temperature, top_p, seed, tick):
            yield row.index, row.ids

    @torch.inference_mode()
    def complete_rows(
        self, prompts: Sequence[tuple[int, list[int]]], max_new_tokens: int, ended: Callable[[list[int]], bool],
        temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, tick: Tick = unheard, measured: bool = False,
    ) -> Iterator[Row]:  # fmt: skip
        """The same as rows; with log-probability and entropy if `measured`, under the logits that chose the tokens."""
        waiting = [Row(i, ids, uniforms(seed, i, max_new_tokens) if temperature else None) for i, ids in prompts]
        waiting.reverse()
        cache, active = SlotCache(self.slots), []
        while waiting or active:
            if waiting and len(active) <= REFILL_AT * self.slots:
                new = [waiting.pop() for _ in range(min(len(waiting), self.slots - len(active)))]
                logits, stepped = self._read(new, len(active), cache), new
                active += new
            else:
                logits, stepped = self._step(active, cache), active
            chosen = choose(logits, stepped, temperature, top_p)
            if measured:
                measure(logits, stepped, chosen)
            for row, token in zip(stepped, chosen, strict=True):
                row.ids.append(token)
            tick(len(stepped))
            finished = [row for row in stepped if len(row.ids) == max_new_tokens or ended(row.ids)]
            for row in finished:
                self._free(active, row, cache)
                yield row

    def _read(self, rows: list[Row], first_slot: int, cache: SlotCache) -> torch.Tensor:
        """Logits after the prompts of new rows, which get the slots from `first_slot` on. (B, V)

        Rows of one prompt, such as the candidates of a question, read it once.
        """
        places: dict[tuple[int, ...], int] = {}
        firsts = [places.setdefault(tuple(row.prompt), place) for place, row in enumerate(rows)]
        prompts = [(first_slot + place, list(prompt)) for prompt, place in places.items()]
        logits = torch.cat([self._read_together(some, cache) for some in as_many_as_fit(prompts, PROMPT_TOKENS)])
        for place, first in enumerate(firsts):
            if place != first:
                cache.move(first_slot + first, first_slot + place, len(rows[place].prompt))
        numbers = {place: number for number, place in enumerate(places.values())}
        return logits[[numbers[first] for first in firsts]]

    def _read_together(self, prompts: list[tuple[int, list[int]]], cache: SlotCache) -> torch.Tensor:
        """Logits after prompts that stand one behind the other, without padding, each with its slot. (B, V)"""
        device = self.model.device
        lengths = torch.tensor([len(prompt) for _, prompt in prompts])
        ends = lengths.cumsum(0)
        slots = torch.tensor([slot for slot, _ in prompts]).repeat_interleave(lengths)
        positions = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
        ids = torch.tensor([token for _, prompt in prompts for token in prompt])
        cache.write_to(slots.to(device), positions.to(device), seen=0)
        boundaries = torch.cat([ends.new_zeros(1), ends])
        return self._forward(ids[None], positions[None], None, cache, (ends - 1).to(device), cu_seq_lens_q=boundaries)[
            0
        ]

    def _step(self, rows: list[Row], cache: SlotCache) -> torch.Tensor:
        """Logits after the last token of every row. (B, V)"""
        device = self.model.device
        ids = torch.tensor([[row.ids[-1]] for row in rows])
        positions = torch.tensor([[row.position] for row in rows])
        seen = int(positions.max()) + 1
        allowed = (torch.arange(seen) <= positions)[:, None, None, :].to(device)
        cache.write_to(torch.arange(len(rows), device=device), positions[:, 0].to(device), seen)
        return self._forward(ids, positions, allowed, cache, 1)[:, -1]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor | None, cache: SlotCache,
        keep: int | torch.Tensor, **boundaries: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """ids, positions: (B, Q)    allowed: (B, 1, 1, K), true where a query sees a key    →    (B, kept, V)"""
        device = self.model.device
        with attending_in_slots(self.config):
            return self.model(
                input_ids=ids.to(device), position_ids=positions.to(device), attention_mask=allowed,
                past_key_values=cache, use_cache=True, logits_to_keep=keep, **boundaries,
            ).logits  # fmt: skip

    def _free(self, active: list[Row], row: Row, cache: SlotCache) -> None:
        """Close the gap of a finished row with the last one, so that occupied slots stay the first ones."""
        slot = next(i for i, other in enumerate(active) if other is row)
        last = active.pop()
        if last is not row:
            cache.move(len(active), slot, last.position)
            active[slot] = last


def as_many_as_fit(prompts: list[tuple[int, list[int]]], tokens: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Prompts in their order, cut where one more would exceed so many tokens; a longer one stands alone."""
    together: list[tuple[int, list[int]]] = []
    for slot, prompt in prompts:
        if together and sum(len(other) for _, other in together) + len(prompt) > tokens:
            yield together
            together = []
        together.append((slot, prompt))
    yield together


def uniforms(seed: int, index: int, n: int) -> torch.Tensor:
    """The random numbers of one completion, in [0, 1). (n,)"""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.rand(n, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])), dtype=torch.float64)


def choose(logits: torch.Tensor, rows: list[Row], temperature: float, top_p: float) -> list[int]:
    """The next token of every row: the largest logit, or the one that the row's next random number falls on. (B, V)"""
    if not temperature:
        return logits.max(-1).indices.tolist()  # argmax(-1) takes six times as long in bfloat16 on a CPU
    chosen: list[int] = []
    for piece, some in in_pieces(logits, rows):
        drawn = torch.stack([row.uniforms[len(row.ids)] for row in some]).to(logits.device)
        chosen += draw((piece.float() / temperature).softmax(-1), drawn, top_p)
    return chosen


def in_pieces(logits: torch.Tensor, rows: list[Row]) -> Iterator[tuple[torch.Tensor, list[Row]]]:
    """Logits (B, V) with their rows: some at once on a CPU, all of them on a GPU."""
    size = ROWS_AT_ONCE if logits.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), size):
        yield logits[start : start + size], rows[start : start + size]


def draw(probabilities: torch.Tensor, drawn: torch.Tensor, top_p: float) -> list[int]:
    """The tokens on which the random numbers `drawn` (B,) fall, of the nucleus of `probabilities` (B, V)."""
    if top_p < 1:
        largest, order = probabilities.sort(-1, descending=True)
        kept = largest.cumsum(-1) - largest < top_p  # the smallest set that reaches top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, largest * kept)
    total = probabilities.double().cumsum(-1)
    found = torch.searchsorted(total, drawn[:, None] * total[:, -1:], right=True)
    return found[:, 0].clamp(max=probabilities.shape[-1] - 1).tolist()


def measure(logits: torch.Tensor, rows: list[Row], chosen: list[int]) -> None:
    """Add to each row the log-probability of its next token, and the entropy there. logits: (B, V)"""
    tokens = iter(chosen)
    for piece, some in in_pieces(logits, rows):
        log_p = piece.float().log_softmax(-1)
        theirs = torch.tensor([next(tokens) for _ in some], device=logits.device)
        logprobs = log_p.gather(-1, theirs[:, None])[:, 0].tolist()
        entropies = (-(log_p.exp() * log_p).sum(-1)).tolist()
        for row, logprob, entropy in zip(some, logprobs, entropies, strict=True):
            row.logprob, row.entropy = row.logprob + logprob, row.entropy + entropy
