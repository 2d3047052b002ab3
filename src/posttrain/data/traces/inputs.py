"""Files and hub datasets as numbered JSON lines, in batches: every format ends in the same bytes (see `formats`)."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.data.json_text import ROW_BYTES
from posttrain.data.records import SourceError
from posttrain.data.traces.formats import OPENERS, SUFFIXES, Item, numbered, read_items, suffix

BATCH_BYTES = 4 * 2**20  # of lines: one unit of work, and what an interruption repeats
BATCH_ROWS = 2**16  # of short lines, each of which takes a kilobyte while it is worked on


@dataclass(frozen=True)
class Input:
    """A file, or a split of a hub dataset, and the digest that says what is in it."""

    name: str
    digest: str
    path: Path | None = None
    table: Any = None  # a datasets.Dataset where there is no path
    row_bytes: int = ROW_BYTES

    def items(self) -> Iterator[Item]:
        """Every row of the input, numbered from 1 (for JSON lines and CSV: by line)."""
        return numbered(self.table) if self.path is None else read_items(self.path, self.row_bytes)


def find_inputs(paths: list[Path], row_bytes: int = ROW_BYTES) -> list[Input]:
    """Files, and those below directories, in order of their names; raises SourceError for what is not readable here."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or directory")
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        files += [file for file in found if path.is_file() or suffix(file) in SUFFIXES]
    for file in files:
        if suffix(file) not in SUFFIXES:
            raise SourceError(f"{file}: expected one of {', '.join(SUFFIXES)}, also with {', '.join(OPENERS)}")
    if not files:
        raise SourceError(f"{', '.join(map(str, paths))}: no {', '.join(SUFFIXES)} files there")
    return [Input(str(file), atomic.sha256_file(file), file, row_bytes=row_bytes) for file in files]


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in pieces of about `BATCH_BYTES`, or of `BATCH_ROWS`."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH_BYTES or len(batch) == BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def hub_input(name: str, config: str | None, split: str, revision: str | None) -> tuple[Input, str | None]:
    """A split of a hub dataset at a commit, which is looked up and returned where none is given."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(name, revision=revision).sha
        table = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the hub's client raises its HTTP library's errors, whichever that is today
        reason = " ".join(str(error).split())
        raise SourceError(f"{name}: not read from the hub ({reason}); name local files instead") from error
    place = f"{name}/{config}/{split}@{revision}"
    return Input(place, hashlib.sha256(place.encode()).hexdigest(), table=table), revision
