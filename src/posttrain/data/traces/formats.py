"""Every format of rows as numbered JSON lines, whatever the file holds, in bounded memory.

`.jsonl`, `.json` (a list, {"data": […]}, {"conversations": […]}, or one object), `.csv` and `.parquet`, each plain or
compressed (`.gz`, `.bz2`, `.xz`, `.zst`; parquet compresses itself). One bound holds for all of them: the bytes of one
row once it is unpacked. A row that cannot be read is handed on as the text of its fault; only what ends a file, such as
a truncated archive, raises.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from posttrain.data.json_text import JsonError, JsonText, TooLongError
from posttrain.data.parquet_rows import parquet_rows
from posttrain.data.records import SourceError

XZ_BYTES = 128 * 2**20  # that unpacking may take; `xz -9` asks for 65 MiB, a file made for it for 4 GiB
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Item = tuple[int, bytes | str]  # number in its file, and a JSON line or the text of a fault


def read_items(path: Path, row_bytes: int) -> Iterator[Item]:
    """Every row of a file, numbered from 1 (for JSON lines and CSV: by line)."""
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    try:
        if suffix(path) == ".parquet":
            yield from numbered(parquet_rows(path, row_bytes))
            return
        with OPENERS.get(path.suffix, open_bytes)(path) as file:
            yield from readers[suffix(path)](_without_utf16(file), row_bytes)
    except TooLongError as error:
        raise SourceError(
            f"{path}: {error}; if it is meant so, raise the bound: --max-row-mb, {row_bytes / 2**20:g} now"
        ) from error
    except (EOFError, OSError, ValueError, RuntimeError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not what is in the file
            raise
        # What was complete stays: the batches before this point are on disk.
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read to its end ({reason}); fetch or write the file again") from error


def suffix(path: Path) -> str:
    """The format's suffix, before that of its compression."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def numbered(rows: Iterable[Any], numbers: Iterable[int] | None = None) -> Iterator[Item]:
    """Rows as JSON lines; a row that JSON cannot say as the text of its fault, as is one that comes as text."""
    for number, row in zip(numbers or count(1), rows, strict=False):
        if isinstance(row, str):
            yield number, row
            continue
        try:
            yield number, json.dumps(row, default=str).encode()
        except (RecursionError, ValueError, TypeError, OverflowError) as error:
            yield number, "nested too deeply" if isinstance(error, RecursionError) else f"no JSON: {error}"


def open_bytes(path: Path) -> IO[bytes]:
    return path.open("rb")


def _without_utf16(file: IO[bytes]) -> IO[bytes]:
    """The file, which is UTF-8, from its start."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[arg-type]
    if buffered.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise JsonError("it is UTF-16 and not UTF-8: iconv -f UTF-16 -t UTF-8")
    return buffered


def _json_lines(file: IO[bytes], row_bytes: int) -> Iterator[Item]:
    for number in count(1):
        line = file.readline(row_bytes)
        if not line:
            return
        if len(line) == row_bytes and not line.endswith(b"\n"):
            while (rest := file.readline(row_bytes)) and not rest.endswith(b"\n"):
                pass
            yield number, f"a line of more than {row_bytes} bytes"
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if number == 1 and line.lstrip().startswith(b"["):
            raise JsonError("it holds a JSON array and not one object a line; name it .json")
        if line.strip():
            yield number, line


def _json(file: IO[bytes], row_bytes: int) -> Iterator[Item]:
    """Rows of a JSON file, one at a time: of an array, or of the arrays below `data` or `conversations`, else one."""
    text, number = JsonText(file, row_bytes), count(1)
    if text.peek() == "[":
        yield from ((next(number), _encoded(value)) for value in text.items())
        text.end()
        return
    if text.peek() != "{":
        raise JsonError("expected a list or an object")
    fields, any_rows = [], False
    for key in text.fields():
        listed = key in ("data", "conversations") and text.peek() == "["
        values = text.items() if listed else iter(())
        first = next(values, None)
        if first is not None and not _is_message(first):
            any_rows = True
            yield next(number), _encoded(first)
            yield from ((next(number), _encoded(value)) for value in values)
            continue
        whole = f"[{','.join([first or '', *values])}]" if listed else text.value()
        fields.append(f"{json.dumps(key)}:{whole}")
        if sum(map(len, fields)) > row_bytes:
            raise TooLongError(f"an object of more than {row_bytes} characters")
    try:
        text.end()
    except JsonError as error:
        raise JsonError(f"{error}; if it holds one object per line, name it .jsonl") from None
    if not any_rows:
        yield next(number), _encoded(f"{{{','.join(fields)}}}")


def _is_message(text: str) -> bool:
    """Whether the first of some values is a message, so that all of them are one conversation and no rows."""
    value = json.loads(text)
    return isinstance(value, dict) and bool({"from", "role"} & set(value))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # bytes that are no UTF-8 as they were


def _csv(file: IO[bytes], row_bytes: int) -> Iterator[Item]:
    csv.field_size_limit(sys.maxsize)  # the bound is that of the row
    bounded = Bounded(file, row_bytes)
    text = io.TextIOWrapper(io.BufferedReader(bounded), encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text)  # columns without a name in the header come as one under None
    while True:
        try:
            bounded.left = row_bytes
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"not CSV: {error}"
            continue
        if None in row or None in row.values():
            yield reader.line_num, f"not as many columns as the header's {len(reader.fieldnames or [])}"
        else:
            yield from numbered([row], [reader.line_num])


class Bounded(io.RawIOBase):
    """A file of which no more than `left` bytes are read on; who reads sets it anew for each row."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self.file, self.left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left < 0:
            raise TooLongError("a row is longer than the bound")
        chunk = self.file.read(len(buffer))
        self.left -= len(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)


class Xz(io.RawIOBase):
    """An .xz file, whose header may not ask for more memory than `XZ_BYTES`; lzma.open takes no such limit."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decoder = lzma.LZMADecompressor(memlimit=XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = self.decoder.unused_data if self.decoder.eof else b""
            if self.decoder.eof or self.decoder.needs_input:
                data = data.lstrip(b"\0") or self.file.read(io.DEFAULT_BUFFER_SIZE)
                if not data and self.decoder.eof:
                    return 0
                if not data:
                    raise EOFError("the archive ends before its end marker")
            if self.decoder.eof:  # another stream, or padding
                self.decoder = lzma.LZMADecompressor(memlimit=XZ_BYTES)
            unpacked = self.decoder.decompress(data, max_length=len(buffer))
            if unpacked:
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)

    def close(self) -> None:
        self.file.close()
        super().close()


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lambda path: io.BufferedReader(Xz(path)),
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path))),
}
