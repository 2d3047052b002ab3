"""One completion as text and ids, and the settings under which it is decoded; no torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Tick = Callable[[int], None]  # is told how many tokens came since it was last called


def unheard(tokens: int) -> None:
    """The tick of a caller who does not count."""


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn; temperature 0 is greedy. The repetition penalty is 1 whatever the checkpoint says."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()  # text that ends a completion, and stays in it

    def as_record(self) -> dict[str, Any]:
        lists = {"stop_token_ids": list(self.stop_token_ids), "stop": list(self.stop)}
        return {**asdict(self), **lists, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Sample:
    """One completion. `index` counts questions × samples; `tokens` counts neither padding nor the stop token."""

    index: int
    text: str
    tokens: int
    finish_reason: str  # `stop` or `length`


@dataclass(frozen=True)
class MeasuredSample(Sample):
    """A sample with its mean log-probability and entropy: nats per token at temperature 1, its end token included."""

    logprob: float
    entropy: float
