"""Files and hub datasets as numbered JSON lines, in batches: every format ends in the same bytes.

`.jsonl`, `.json` (a list, {"data": […]}, {"conversations": […]}, or one object), `.csv` and `.parquet`, each plain or
compressed (`.gz`, `.bz2`, `.xz`, `.zst`; parquet compresses itself). A line that cannot be read is handed on as the
text of its fault; only what ends a file, such as a truncated archive, raises.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import atomic
from posttrain.data.records import SourceError

BATCH_BYTES = 4 * 2**20  # of lines: one unit of work, and what an interruption repeats
LINE_BYTES = 64 * 2**20  # a longer line is a fault, so that no line decides how much memory is needed
DEPTH = 100  # of a JSON file; rows are two or three deep
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
OPENERS = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path))),
}
Item = tuple[int, bytes | str]  # number in its file, and a JSON line or the text of a fault


@dataclass(frozen=True)
class Input:
    """A file, or a split of a hub dataset, and the digest that says what is in it."""

    name: str
    digest: str
    path: Path | None = None
    table: Any = None  # a datasets.Dataset where there is no path

    def items(self) -> Iterator[Item]:
        """Every row of the input, numbered from 1 (for JSON lines and CSV: by line)."""
        if self.path is None:
            return _dumped(enumerate(self.table, start=1))
        return _read(self.path)


def find_inputs(paths: list[Path]) -> list[Input]:
    """Files, and those below directories, in order of their names; raises SourceError for what is not readable here."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or directory")
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        files += [file for file in found if path.is_file() or _suffix(file) in SUFFIXES]
    for file in files:
        if _suffix(file) not in SUFFIXES:
            raise SourceError(f"{file}: expected one of {', '.join(SUFFIXES)}, also with {', '.join(OPENERS)}")
    if not files:
        raise SourceError(f"{', '.join(map(str, paths))}: no {', '.join(SUFFIXES)} files there")
    return [Input(str(file), atomic.sha256_file(file), file) for file in files]


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in pieces of about `BATCH_BYTES`."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _read(path: Path) -> Iterator[Item]:
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    try:
        if _suffix(path) == ".parquet":
            yield from _parquet(path)
            return
        with OPENERS.get(path.suffix, open_bytes)(path) as file:
            yield from readers[_suffix(path)](file)
    except (EOFError, OSError, lzma.LZMAError, pa.ArrowException, ijson.JSONError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not what is in the file
            raise
        # What was complete stays: the batches before this point are on disk.
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read to its end ({reason}); fetch or write the file again") from error


def open_bytes(path: Path) -> IO[bytes]:
    return path.open("rb")


def _json_lines(file: IO[bytes]) -> Iterator[Item]:
    number = 0
    while line := file.readline(LINE_BYTES):
        number += 1
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, f"a line of more than {LINE_BYTES} bytes"
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _json(file: IO[bytes]) -> Iterator[Item]:
    """Rows of a JSON file, one at a time: the memory it takes is that of its largest row."""
    file = file if file.seekable() else io.BytesIO(file.read())
    start = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    if start == b"[":
        yield from _dumped(enumerate(_objects(file, "item"), start=1))
    elif start == b"{":
        yield from _json_object(file)
    else:
        raise ijson.JSONError("expected a list or an object")


def _json_object(file: IO[bytes]) -> Iterator[Item]:
    """Rows below `data` or `conversations`; without them, or with the messages of one conversation there, one row."""
    for prefix in ("data.item", "conversations.item"):
        file.seek(0)
        rows = _objects(file, prefix)
        try:
            first = next(rows, None)
        except ijson.JSONError as error:
            raise ijson.JSONError(f"{error}; if it holds one object per line, name it .jsonl") from error
        if first is None or (isinstance(first, dict) and {"from", "role"} & set(first)):
            continue
        yield from _dumped(enumerate(_chain(first, rows), start=1))
        return
    file.seek(0)
    yield from _dumped([(1, next(_objects(file, "")))])


def _objects(file: IO[bytes], prefix: str) -> Iterator[Any]:
    return ijson.items(ijson.parse(_shallow(ijson.basic_parse(file, use_float=True))), prefix)


def _shallow(events: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The parser's events, as long as they are not those of a file made to exhaust it."""
    depth = 0
    for event, value in events:
        depth += event in ("start_map", "start_array")
        depth -= event in ("end_map", "end_array")
        if depth > DEPTH:
            raise ijson.JSONError(f"nested more than {DEPTH} deep")
        yield event, value


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _csv(file: IO[bytes]) -> Iterator[Item]:
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text)  # columns without a name in the header come as one under None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"not CSV: {error}"
            continue
        if None in row or None in row.values():
            yield reader.line_num, f"not as many columns as the header's {len(reader.fieldnames or [])}"
        else:
            yield from _dumped([(reader.line_num, row)])


def _parquet(path: Path) -> Iterator[Item]:
    with pq.ParquetFile(path) as file:
        number = 1
        for batch in file.iter_batches(batch_size=256):
            rows = batch.to_pylist()
            yield from _dumped(enumerate(rows, start=number))
            number += len(rows)


def _dumped(rows: Iterable[tuple[int, Any]]) -> Iterator[Item]:
    for number, row in rows:
        try:
            yield number, json.dumps(row, default=str).encode()
        except RecursionError:
            yield number, "nested too deeply"


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
