"""What a person at the console reads: what a run is, how far it has come, and what came out of it.

On a terminal progress is a bar that stays in its place; in a log file it is a plain line now and then. Only the main
process says anything.
"""

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Row = TypeVar("Row")
SECONDS_A_LINE = 30.0  # between two lines of progress in a log
SECONDS_A_DRAWING = 0.2  # between two drawings of a bar
# What libraries say at their import to a person who did not ask for it. Nothing of it is lost: the header names the
# device, and the one of a run with 4-bit weights on a CPU says what was held back.
FOUR_BIT = "bitsandbytes.backends.cpu.ops"
NOISE = {
    FOUR_BIT: "Failed to load CPU gemm_4bit_forward",
    "DeepSpeed": "Setting accelerator to CPU. If you have GPU",
}
LIBRARY_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # transformers obeys the first


def is_main_process() -> bool:
    """Whether this process is the one that speaks; launchers number the others by RANK."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print `text` once, however many processes run, and above the bar where one is drawn."""
    if is_main_process():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Print `warning: text` on stderr, once and above the bar."""
    if is_main_process():
        tqdm.write(f"warning: {text}", file=sys.stderr)
        sys.stderr.flush()


def command_line(command: Sequence[str]) -> str:
    """A command as a person would type it here: this Python is `python`, and paths below this directory are short."""
    here = f"{Path.cwd()}/"
    words = [word.removeprefix(here) for word in command]
    if words[:3] == [sys.executable.removeprefix(here), "-m", "accelerate.commands.launch"]:
        words = ["accelerate", "launch", *words[3:]]
    elif words[:1] == [sys.executable.removeprefix(here)]:
        words = ["python", *words[1:]]
    return shlex.join(words)


def can_draw(stream: TextIO) -> bool:
    """Whether a bar can stay in its place on `stream`: a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def header(facts: Mapping[str, str]) -> str:
    """A fact by its name for every one that is not empty, aligned, to stand below the title of a run."""
    told = {name: fact for name, fact in facts.items() if fact}
    width = max(map(len, told), default=0)
    indented = "\n" + " " * (width + 4)
    return "\n".join(f"  {name:<{width}}  {fact.replace(chr(10), indented)}" for name, fact in told.items())


def percent(share: float | None) -> str:
    """`12.3 %`; a dash for None."""
    return "–" if share is None else f"{share:.1%}".replace("%", "\u00a0%")


def interval(estimate: dict[str, Any] | None) -> str:
    """`12.3 % [10.1, 14.8]`; a dash for None."""
    if estimate is None:
        return "–"
    return f"{percent(estimate['value'])} [{100 * estimate['low']:.1f},\u00a0{100 * estimate['high']:.1f}]"


def clock(seconds: float) -> str:
    """`0:07`, `12:03`, `3:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plural(n: int, noun: str) -> str:
    """`1 process`, `2 processes`, `1,200 rows`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")


def counted(counts: Mapping[str, int]) -> str:
    """`600 train, 200 validation`; what is zero is left out, and nothing at all is `none`."""
    return ", ".join(f"{n:,} {name}" for name, n in counts.items() if n) or "none"


def counts_line(counts: Mapping[str, int | Mapping[str, int]]) -> str:
    """A manifest's counts: `1,200 read; dropped: 905 not_accepted; kept: 210 train`."""
    plain = {name: n for name, n in counts.items() if isinstance(n, int)}
    grouped = [f"{name}: {counted(group)}" for name, group in counts.items() if not isinstance(group, int)]
    return "; ".join([*([counted(plain)] if plain else []), *grouped])


def machine_line(device: str, processes: int, threads: int, dtype: str, attention: str) -> str:
    """What computes, in one line. Threads are told on a CPU, where they do the work."""
    of_threads = f" of {plural(threads, 'thread')}" if device.lower() == "cpu" else ""
    return f"{device}, {plural(processes, 'process')}{of_threads}, {dtype}, {attention} attention"


class HeldBack(logging.Filter):
    """Keeps a logger's messages that begin with `start` instead of showing them."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start
        self.messages: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(self.start):
            return True
        self.messages.append(record.getMessage())
        return False


_held: dict[str, HeldBack] = {}


def hold_back_noise() -> None:
    """Hold NOISE back, and the bars of libraries where nothing can draw them. Every script starts with this."""
    for name in NOISE.keys() - _held.keys():
        _held[name] = HeldBack(NOISE[name])
        logging.getLogger(name).addFilter(_held[name])
    if not can_draw(sys.stderr):
        for variable in LIBRARY_BARS:
            os.environ.setdefault(variable, "1")


def held_back(name: str) -> list[str]:
    """What the logger of that name wanted to say, for a run that uses what it speaks of."""
    return list(_held[name].messages) if name in _held else []


def progress_line(name: str, unit: str, done: int, total: int, before: int, tokens: int, seconds: float) -> str:
    """`tiny_1step: 64 of 200 answers, 3,204 tokens, 410 tokens/s, 1:20 left`.

    `before` of those done were there when the `seconds` began. What is left is told from a tenth of the rest on, as the
    first ones end late: many are in the making at once. A `total` of 0 is unknown.
    """
    parts = [f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"]
    if tokens:
        parts.append(rate(tokens, seconds))
    if done < total and done > before and 10 * (done - before) >= total - before:
        parts.append(f"{clock(seconds / (done - before) * (total - done))} left")
    return f"{name}: {', '.join(parts)}"


def rate(tokens: int, seconds: float) -> str:
    """`3,204 tokens, 410 tokens/s`."""
    return f"{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f} tokens/s"


class Progress:
    """How much of `total` is done, with the tokens that show life while rows of minutes are in the making.

    `name` and `unit` are a person's words, such as `tiny_1step` and `answers`. A log says nothing of work that takes
    less than half a minute.
    """

    def __init__(
        self, name: str, unit: str, total: int, done: int = 0, stream: TextIO | None = None, plain: bool = False
    ) -> None:
        self.name, self.unit, self.total, self.before, self.done = name, unit, total, done, done
        self.stream, self.tokens = stream or sys.stderr, 0
        self.started = self.shown = time.monotonic()
        self.bar = None
        if is_main_process() and not plain and can_draw(self.stream):
            self.bar = tqdm(
                total=total or None, initial=done, desc=name, unit=f" {unit}", file=self.stream, dynamic_ncols=True,
                leave=False,
            )  # fmt: skip

    def over(self, rows: Iterable[Row], counted: bool = True) -> Iterator[Row]:
        """The rows, each of them counted once it was dealt with, or by the caller where `counted` is false."""
        try:
            for row in rows:
                yield row
                self.advance(int(counted))
        finally:
            self.close()

    def advance(self, rows: int = 1) -> None:
        """Count rows that are whole."""
        self.done += rows
        if self.bar is not None:
            self.bar.update(rows)
        self._show()

    def count(self, tokens: int) -> None:
        """Count tokens, of rows that may not be whole yet."""
        self.tokens += tokens
        self._show()

    def close(self) -> None:
        """Take the bar away; what came out is told by others."""
        if self.bar is not None:
            self.bar.close()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self.shown < (SECONDS_A_LINE if self.bar is None else SECONDS_A_DRAWING):
            return
        self.shown, seconds = now, now - self.started
        if self.bar is not None:
            self.bar.set_postfix_str(rate(self.tokens, seconds) if self.tokens else "")
        elif is_main_process():
            line = progress_line(self.name, self.unit, self.done, self.total, self.before, self.tokens, seconds)
            print(line, file=self.stream, flush=True)
