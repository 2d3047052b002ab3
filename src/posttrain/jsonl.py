"""JSON files of ours, read back: what is there has the shape that was written, or one line says what to do.

A shape is a type (`float`: any finite number), a set of allowed values, a dict of the shapes of its keys (others may be
there), `{str: shape}` for any keys, `[shape]` for a list, and a tuple of shapes for either of them.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.digests import DamageError, bytes_digest

Shape = Any
SEAL = "seal"


def mismatch(value: Any, shape: Shape, where: str = "") -> str | None:
    """Where a value is not of its shape and what was expected there, or None."""
    if isinstance(shape, tuple):
        faults = [mismatch(value, one, where) for one in shape]
        return None if None in faults else faults[0]
    if isinstance(shape, dict) and isinstance(value, dict):
        items = [(name, shape[str]) for name in value] if str in shape else list(shape.items())
        found = (
            mismatch(value[name], one, f"{where}.{name}") if name in value else f"{where[1:]} has no {name!r}".lstrip()
            for name, one in items
        )
        return next(filter(None, found), None)
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (mismatch(one, shape[0], f"{where}[{i}]") for i, one in enumerate(value))), None)
    if isinstance(shape, type):
        right = type(value) in (int, float) and math.isfinite(value) if shape is float else type(value) is shape
    else:
        right = isinstance(shape, set | frozenset) and isinstance(value, str) and value in shape
    name = shape.__name__ if isinstance(shape, type) else type(shape).__name__
    return None if right else f"{where[1:]} is {value!r:.60}, expected {name}".lstrip()


def parse(text: str) -> Any:
    """A JSON value that can be printed; raises ValueError where it is none, is too deep, or holds half a character."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    return value


def read_object(path: Path, shape: Shape, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no such file; raises DamageError with `remedy`."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
        json.dumps(value, allow_nan=False)  # raises for NaN and infinity, which could not be written again
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamageError(f"{path}: not JSON ({error}); {remedy}") from error
    if fault := mismatch(value, dict) or mismatch(value, shape):
        raise DamageError(f"{path}: {fault}; {remedy}")
    return value


def read_lines(path: Path, shape: Shape, remedy: str) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file (`.gz`: compressed), empty lines passed over; raises DamageError, which names the
    line and the `remedy`.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines, which also splits at U+2028
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DamageError(f"{path}: cannot be read ({error}); {remedy}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = parse(line)
                fault = mismatch(value, dict) or mismatch(value, shape)
            except ValueError as error:
                fault = f"not JSON ({error})"
            if fault:
                raise DamageError(f"{path}:{number}: {fault}; {remedy}")
            found.append(value)
    return found


def sealed(value: dict[str, Any]) -> str:
    """A line of JSON that carries its own digest, for files that grow line by line."""
    body = json.dumps(value, ensure_ascii=False)
    return json.dumps({**value, SEAL: bytes_digest(body.encode())}, ensure_ascii=False) + "\n"


def unsealed(lines: Iterable[bytes], shape: dict[str, Shape]) -> Iterator[dict[str, Any] | None]:
    """The value of each line without its seal; None for a line that is cut, damaged, or not of the shape.

    A line of an earlier version has no seal; it is taken if its keys are those of the shape.
    """
    for line in lines:
        try:
            value = parse(line.decode())
            seal = value.pop(SEAL, None)
            body = json.dumps(value, ensure_ascii=False)
        except (ValueError, AttributeError, TypeError):
            yield None
            continue
        whole = value.keys() == shape.keys() if seal is None else seal == bytes_digest(body.encode())
        yield value if whole and line.endswith(b"\n") and not mismatch(value, shape) else None
