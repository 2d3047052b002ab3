"""Which rows of all parts are kept: budget, duplicates, caps, number. And the files of the result.

Only the narrow columns of all rows are in memory at once; texts and ids are read in ranges of the row's id, which is
the order of the parts and of the result. So the result is a function of the set of rows alone: not of their order, the
number of processes or what was interrupted.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from posttrain.data.manifest import HISTOGRAM_STEP
from posttrain.data.traces.duplicates import BANDS, WIDTH, near_duplicates
from posttrain.data.traces.filters import REASONS
from posttrain.data.traces.parts import read_part

NARROW = ["id", "n_tokens", "n_prompt", "source", "reason", "question", "tie", "rate", "touches"]
CODES = {reason: code for code, reason in enumerate(REASONS)}
KEPT = -1
BANDS_AT_ONCE = 4  # of the signatures: 64 bytes a row
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Limits:
    """What a row must satisfy beside its own soundness. Lengths in tokens."""

    max_tokens: int
    length_of: str  # prompt+response, or response
    min_tokens: int  # of the response
    near_threshold: float | None
    cap: int | None  # rows of one source
    n: int | None
    validation: int
    order_by: str | None
    seed: int


@dataclass(frozen=True)
class Table:
    """One entry per row of all parts, in order of id. `code` is `KEPT` or a reason's place in `REASONS`."""

    key: np.ndarray  # the id as a number
    part: np.ndarray
    row: np.ndarray
    n_tokens: np.ndarray
    n_prompt: np.ndarray
    question: np.ndarray
    tie: np.ndarray
    rate: np.ndarray
    touches: np.ndarray
    source: np.ndarray
    code: np.ndarray


def load_table(parts: list[Path]) -> Table:
    """The narrow columns of all parts."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Table.__dataclass_fields__}
    sources: dict[str, int] = {}
    for number, path in enumerate(parts):
        read = read_part(path, NARROW)
        names = [sources.setdefault(name, len(sources)) for name in read["source"].to_pylist()]
        values = {
            "key": np.frombuffer(bytes.fromhex("".join(read["id"].to_pylist())), ">u8").astype(np.uint64),
            "part": np.full(len(read), number, dtype=np.int32),
            "row": np.arange(len(read), dtype=np.int32),
            **{name: _whole(read[name], np.int32) for name in ("n_tokens", "n_prompt")},
            **{name: _whole(read[name], np.uint64) for name in ("question", "tie")},
            "rate": read["rate"].to_numpy().astype(np.float32),  # null is NaN
            "touches": _whole(read["touches"], np.int64),
            "source": np.array(names, dtype=np.int32),
            "code": np.array([CODES.get(reason, KEPT) for reason in read["reason"].to_pylist()], dtype=np.int8),
        }
        for name, column in columns.items():
            column.append(values[name])
    # One column at a time: all of them twice would be the most that is ever in memory.
    joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    # Rows of one id: a sound one first, then by gold answer and source; what is equal in all of it is interchangeable.
    order = np.lexsort((joined["tie"], joined["code"], joined["key"]))
    return Table(**{name: joined.pop(name)[order] for name in list(joined)})


def _whole(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    return pc.fill_null(column, 0).to_numpy().astype(dtype)


def decide(table: Table, limits: Limits, parts: list[Path]) -> np.ndarray:
    """The split of every row (0 train, 1 validation, -1 dropped); writes the reasons into `table.code`."""
    code = table.code
    response = table.n_tokens - table.n_prompt
    length = table.n_tokens if limits.length_of == "prompt+response" else response
    counted = (code == KEPT) | (code > CODES["too_long"])
    code[counted & (length > limits.max_tokens)] = CODES["too_long"]
    counted &= length <= limits.max_tokens
    encoded = table.n_tokens > 0  # of others nobody knows the length
    code[counted & encoded & (response < limits.min_tokens)] = CODES["too_short"]
    if limits.order_by is not None:
        code[(code == KEPT) & np.isnan(table.rate)] = CODES["no_rate"]
    code[(code == KEPT) & (table.touches > 0)] = CODES["contaminated"]
    sound = np.flatnonzero(code == KEPT)
    code[sound[1:][table.key[sound][1:] == table.key[sound][:-1]]] = CODES["duplicate"]
    if limits.near_threshold is not None:
        sound = np.flatnonzero(code == KEPT)
        bands = functools.partial(_bands, table, sound, parts)
        code[sound[near_duplicates(bands, len(sound), limits.near_threshold)]] = CODES["near_duplicate"]
    _choose(table, limits)
    return _split(table, limits)


def _bands(table: Table, rows: np.ndarray, parts: list[Path]) -> Iterator[np.ndarray]:
    """The bands of these rows' signatures, one after the other, `BANDS_AT_ONCE` of them in memory."""
    for band in range(0, BANDS, BANDS_AT_ONCE):
        signed = np.empty((BANDS_AT_ONCE, len(rows), WIDTH), dtype=np.uint32)
        for number, mine in _by_part(table.part[rows]):
            column = read_part(parts[number], ["signature"])["signature"].chunk(0)
            entries = np.frombuffer(column.buffers()[1], np.uint32).reshape(-1, BANDS, WIDTH)
            signed[:, mine] = entries[table.row[rows[mine]], band : band + BANDS_AT_ONCE].swapaxes(0, 1)
        yield from signed


def _by_part(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every part that occurs among the numbers, and where it does."""
    order = np.argsort(numbers, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if len(mine):
            yield numbers[mine[0]], mine


def _choose(table: Table, limits: Limits) -> None:
    """Caps and the number of rows, the best rate first, then by the seeded hash of the content."""
    sound = np.flatnonzero(table.code == KEPT)
    rate = -table.rate[sound] if limits.order_by is not None else np.zeros(len(sound))
    ranked = sound[np.lexsort((seeded(table.key[sound], limits.seed), rate))]
    if limits.cap is not None:
        by_source = np.argsort(table.source[ranked], kind="stable")
        names = table.source[ranked][by_source]
        starts = np.searchsorted(names, names)
        over = ranked[by_source[np.arange(len(names)) - starts >= limits.cap]]
        table.code[over] = CODES["over_cap"]
        ranked = ranked[table.code[ranked] == KEPT]
    if limits.n is not None:
        table.code[ranked[limits.n :]] = CODES["not_chosen"]


def _split(table: Table, limits: Limits) -> np.ndarray:
    """Whole questions go to validation until it has enough rows, so that none of its questions is trained on."""
    split = np.where(table.code == KEPT, 0, -1)
    sound = np.flatnonzero(table.code == KEPT)
    order = sound[np.argsort(seeded(table.question[sound], limits.seed + 1), kind="stable")]
    last = min(limits.validation, len(order))
    while 0 < last < len(order) and table.question[order[last]] == table.question[order[last - 1]]:
        last += 1
    split[order[:last]] = 1
    return split


def seeded(keys: np.ndarray, seed: int) -> np.ndarray:
    """A number per key that is as good as random and depends on nothing else (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def counts(table: Table) -> dict[str, int]:
    """Dropped rows by reason, in the order of `REASONS`, without those that never occurred."""
    found = Counter(table.code.tolist())
    return {reason: found[code] for reason, code in CODES.items() if found[code]}


def histogram(table: Table, split: np.ndarray) -> dict[str, dict[str, int]]:
    """Rows per bar of `HISTOGRAM_STEP` tokens, by split."""
    bars = {}
    for number, name in enumerate(SPLITS):
        found = Counter((table.n_tokens[split == number] // HISTOGRAM_STEP * HISTOGRAM_STEP).tolist())
        bars[name] = {str(bar): found[bar] for bar in sorted(found)}
    return bars
