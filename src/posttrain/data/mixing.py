"""One prepared dataset from several: how many rows of each, which ones, and what they have in common.

Rows are chosen by their content hash, so a mixture depends neither on the order of files nor on chance, and more of a
source holds all that less of it held. What a source holds out is held out of the whole mixture.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import row_id
from posttrain.data.token_files import KEY, ids_path
from posttrain.data.traces.duplicates import BANDS, WIDTH, near_duplicates, signatures
from posttrain.errors import PosttrainError


class MixError(PosttrainError):
    """Datasets or amounts that cannot be mixed."""


@dataclass(frozen=True)
class Part:
    """How much of a dataset is wanted: a share of the whole mixture, or a number of rows."""

    directory: Path
    share: Fraction | None
    count: int | None


def parse_part(text: str) -> Part:
    """The part that `directory:amount` names; a number with a point is a share, one without is rows."""
    directory, _, amount = text.rpartition(":")
    try:
        if not directory:
            raise ValueError
        share = Fraction(amount) if "." in amount else None
        count = None if share is not None else int(amount)
    except ValueError:
        raise MixError(f"{text!r}: expected directory:0.5 for a share or directory:200 for a number of rows") from None
    if (share is not None and not 0 < share <= 1) or (count is not None and count < 1):
        raise MixError(f"{text!r}: a share lies above 0 and up to 1.0, a number of rows is 1 or more")
    return Part(Path(directory), share, count)


def quotas(parts: Sequence[Part], available: Sequence[int], total: int | None) -> list[int]:
    """Rows of each part: counts as they are, shares within one row of theirs, by the largest remainders.

    Without counts the mixture has `total` rows, or as many as the sources allow. Raises MixError where amounts
    contradict each other or a source has too few rows.
    """
    shares = sum((part.share for part in parts if part.share is not None), Fraction(0))
    counted = sum(part.count for part in parts if part.count is not None)
    size = _size(parts, available, total, shares, counted)
    exact = [part.share * size if part.share is not None else Fraction(part.count or 0) for part in parts]
    found = [math.floor(rows) for rows in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: found[i] - exact[i])  # stable: the first named of equals
    for i in by_remainder[: size - sum(found)]:
        found[i] += 1
    for part, rows, there in zip(parts, found, available, strict=True):
        if rows > there:
            wanted = f"{float(part.share):g} of {size:,} rows is" if part.share else "asked for are"
            raise MixError(f"{part.directory}: {wanted} {rows:,}, and it has {there:,} to give; ask for less")
    return found


def _size(
    parts: Sequence[Part], available: Sequence[int], total: int | None, shares: Fraction, counted: int
) -> int:  # fmt: skip
    """Rows of the whole mixture."""
    said = f"the shares add up to {float(shares):g}"
    if not counted:
        if shares != 1:
            raise MixError(f"{said}, expected 1: each is a share of the mixture")
        most = min(math.floor(there / part.share) for part, there in zip(parts, available, strict=True) if part.share)
        return most if total is None else total
    if shares >= 1:
        raise MixError(f"{said}, which leaves nothing for the parts given in rows; lower them")
    size = round(counted / (1 - shares))
    if total is not None and total != size:
        raise MixError(f"--n {total}: {counted} rows and shares of {float(shares):g} make {size}; leave --n out")
    return size


@dataclass(frozen=True)
class Loaded:
    """A source with its splits, and their token ids where it has them."""

    directory: Path
    manifest: dict[str, Any]
    splits: dict[str, pa.Table]
    ids: dict[str, pa.Table]

    @property
    def key(self) -> str | None:
        """What its token ids were made under; None where a split has none, or splits differ."""
        found = {
            (self.ids[name].schema.metadata or {}).get(KEY, b"") if name in self.ids else b"" for name in self.splits
        }
        return found.pop().decode() or None if len(found) == 1 else None


def load(directory: Path) -> Loaded:
    """A prepared dataset, its bytes checked."""
    manifest = check_dataset(directory)
    names = [name for name in ("train", "validation") if f"{name}.parquet" in manifest["files"]]
    if "train" not in names:
        raise MixError(f"{directory}: has no train split, only {', '.join(manifest['files'])}")
    paths = {name: split_path(directory, manifest, name) for name in names}
    splits = {name: pq.read_table(path) for name, path in paths.items()}
    listed = {name: ids_path(path) for name, path in paths.items() if ids_path(path).name in manifest["files"]}
    ids = {name: pq.read_table(path) for name, path in listed.items()}
    return Loaded(directory, manifest, splits, {n: t for n, t in ids.items() if t["id"].equals(splits[n]["id"])})


@dataclass(frozen=True)
class Rows:
    """Of each source the places of rows that may be taken, by content hash; `dropped` counts those that may not."""

    train: list[np.ndarray]
    validation: list[np.ndarray]
    dropped: dict[str, int]


def candidates(sources: Sequence[Loaded]) -> Rows:
    """What may be taken: no row twice, and none to train on whose question a source holds out."""
    none = sources[0].splits["train"].slice(0, 0)
    held = [source.splits.get("validation", none) for source in sources]
    questions = {question for table in held for question in questions_of(table)}
    seen: set[str] = set()
    found = Rows([], [], {"held_out_elsewhere": 0, "duplicate": 0})
    for tables, places in ((held, found.validation), ([s.splits["train"] for s in sources], found.train)):
        for table in tables:
            names, asked = table["id"].to_pylist(), questions_of(table)
            free = []
            for place in sorted(range(len(names)), key=names.__getitem__):
                if tables is not held and asked[place] in questions:
                    found.dropped["held_out_elsewhere"] += 1
                elif names[place] in seen:
                    found.dropped["duplicate"] += 1
                else:
                    seen.add(names[place])
                    free.append(place)
            places.append(np.array(free, dtype=np.int64))
    return found


def questions_of(table: pa.Table) -> list[str]:
    """What each row asks: a hash of its prompt, or of its text where it has none."""
    if "prompt" not in table.column_names:
        return [row_id(text) for text in table["text"].to_pylist()]
    return [row_id(*(message["content"] for message in prompt)) for prompt in table["prompt"].to_pylist()]


def joined(tables: Sequence[pa.Table], where: Sequence[Path]) -> tuple[pa.Table, np.ndarray]:
    """The rows of all tables in order of their id, and that order; raises MixError where columns differ."""
    first = tables[0]
    for table, directory in zip(tables, where, strict=True):
        if table.column_names != first.column_names:
            raise MixError(
                f"{directory}: has the columns {', '.join(table.column_names)}, and {where[0]} has "
                f"{', '.join(first.column_names)}; mix datasets of one kind"
            )
    try:
        whole = pa.concat_tables([table.cast(first.schema) for table in tables]).combine_chunks()
    except pa.ArrowException as error:
        raise MixError(f"{', '.join(map(str, where))}: columns of different kinds ({error})") from error
    order = np.argsort(np.array(whole["id"].to_pylist(), dtype=str), kind="stable")
    return whole.take(order), order


def near_duplicates_across(tables: Sequence[pa.Table], threshold: float) -> int:
    """How many rows are almost equal to one of an earlier table and to none of their own, by shingles of words."""
    rows = [_words(table) for table in tables]
    edges = np.cumsum([0, *map(len, rows)])
    signed = [signatures(part) for part in rows]
    among_all = _similar(np.concatenate(signed), threshold)
    return sum(
        int((among_all[edges[i] : edges[i + 1]] & ~_similar(part, threshold)).sum())
        for i, part in enumerate(signed)
        if len(part)
    )


def _similar(signed: np.ndarray, threshold: float) -> np.ndarray:
    return near_duplicates(lambda: signed.reshape(len(signed), BANDS, WIDTH).swapaxes(0, 1), len(signed), threshold)


def _words(table: pa.Table) -> list[np.ndarray]:
    """A number for each word of each row, of all its texts in turn."""
    said = [name for name in ("text", "prompt", "completion", "chosen", "rejected") if name in table.column_names]
    found = []
    for row in table.select(said).to_pylist():
        texts = [row[n] if n == "text" else " ".join(m["content"] for m in row[n] or []) for n in said]
        found.append(np.array([zlib.crc32(word.encode()) for word in " ".join(texts).split()], dtype=np.uint32))
    return found
