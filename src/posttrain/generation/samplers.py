"""Samplers behind one signature: prompts as token ids in, samples out, in any order."""

import functools
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeVar

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.console import plural
from posttrain.generation.packed_weights import is_packed
from posttrain.generation.sample import Decoding, MeasuredSample, Sample, Tick, unheard
from posttrain.generation.slots import Row, SlotEngine
from posttrain.generation.stretches import CUT, cut
from posttrain.hardware import machine_facts
from posttrain.models.host_memory import give_back

Piece, Item = TypeVar("Piece"), TypeVar("Item")
Prompts = Sequence[tuple[int, list[int]]]  # index and token ids of each
UNFINISHED = 8  # tokens more than a stop text has characters, as some tokens are parts of one


class Sampler(Protocol):
    """Anything that completes prompts."""

    backend: dict[str, str]

    def machine(self) -> dict[str, str]:
        """Lines of a header on what computes, by name."""
        ...

    def sample(
        self, prompts: Sequence[list[int]], decoding: Decoding, done: AbstractSet[int], tick: Tick = unheard
    ) -> Iterator[Sample]:
        """One sample per prompt that is not in `done`; `index` says which. `tick` is told of tokens as they come."""
        ...


class StretchSampler:
    """A sampler of our own engine, here or in processes: it works in stretches, which `over` has done."""

    batch_size: int

    def over(
        self, function: Callable[["HfSampler", Piece, Tick], Iterator[Item]], pieces: Sequence[Piece], tick: Tick
    ) -> Iterator[Item]:
        """What `function` yields of each piece, in any order; it is given a loaded model as an HfSampler."""
        raise NotImplementedError

    def sample(
        self, prompts: Sequence[list[int]], decoding: Decoding, done: AbstractSet[int] = frozenset(),
        tick: Tick = unheard,
    ) -> Iterator[Sample]:  # fmt: skip
        """One sample per prompt.

        A stretch of prompts that is not wholly `done` is drawn again whole, so that an interrupted evaluation ends with
        the samples of one never interrupted, to the last bit of a logit.
        """
        stretches = cut([len(prompt) for prompt in prompts], self.batch_size)
        pieces = [[(i, prompts[i]) for i in stretch] for stretch in stretches if not done.issuperset(stretch)]
        for sample in self.over(functools.partial(HfSampler.complete, decoding=decoding), pieces, tick):
            if sample.index not in done:
                yield sample


class HfSampler(StretchSampler):
    """A transformers model in this process, completing `batch_size` prompts at a time (see `slots`)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.engine = SlotEngine(model, batch_size)
        self.backend = {
            "name": "transformers",
            "version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "attention": model.config._attn_implementation,
            "weights": "packed" if is_packed(model) else "plain",
            "batch_size": str(batch_size),  # moves the last bits of the logits, as the cut does
            "cut": CUT,
        }

    def machine(self) -> dict[str, str]:
        """What computes here, and how many completions at once."""
        facts = machine_facts(self.model)
        return facts | {"machine": f"{facts['machine']}, {plural(self.batch_size, 'answer')} at once"}

    def over(self, function: Any, pieces: Sequence[Any], tick: Tick) -> Iterator[Any]:
        """One piece after another."""
        for piece in pieces:
            yield from function(self, piece, tick)

    def complete(self, prompts: Prompts, tick: Tick, decoding: Decoding) -> Iterator[Sample]:
        """A sample of every prompt of one stretch."""
        for row in self._rows(prompts, tick, decoding, measured=False):
            yield to_sample(row.index, row.ids, decoding, self.tokenizer)

    def complete_measured(self, prompts: Prompts, tick: Tick, decoding: Decoding) -> Iterator[MeasuredSample]:
        """The same with what the model thought of each sample, under the logits that it was drawn from."""
        for row in self._rows(prompts, tick, decoding, measured=True):
            sample = to_sample(row.index, row.ids, decoding, self.tokenizer)
            yield MeasuredSample(**vars(sample), logprob=row.logprob / len(row.ids), entropy=row.entropy / len(row.ids))

    def _rows(self, prompts: Prompts, tick: Tick, decoding: Decoding, measured: bool) -> Iterator[Row]:
        yield from self.engine.complete_rows(
            prompts, decoding.max_new_tokens, lambda ids: ending(ids, decoding, self.tokenizer) is not None,
            decoding.temperature, decoding.top_p, decoding.seed, tick, measured,
        )  # fmt: skip
        if self.model.device.type == "cpu":
            give_back()

    def halve(self) -> None:
        """Go on with half as many completions at once."""
        self.batch_size //= 2
        self.engine = SlotEngine(self.model, self.batch_size)


def ending(ids: list[int], decoding: Decoding, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What ended a completion with its last token: an end token as "", a stop text as itself, None for neither."""
    if ids[-1] in decoding.stop_token_ids:
        return ""
    if not decoding.stop:
        return None
    tail = decode(ids[-max(map(len, decoding.stop)) - UNFINISHED :], tokenizer)
    return next((stop for stop in decoding.stop if stop in tail), None)


def to_sample(index: int, ids: list[int], decoding: Decoding, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """The sample of a completion's ids, which end with what ended it; a stop text stays in the text."""
    end = ending(ids, decoding, tokenizer)
    kept = ids[:-1] if end == "" else ids
    text = decode(kept, tokenizer)
    if end:
        text = text[: text.rfind(end) + len(end)]
    return Sample(index, text, len(kept), "length" if end is None else "stop")


def decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of ids, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
