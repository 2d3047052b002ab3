"""JSON files of ours, read back: what is there has the shape that was written, or one line says what to do.

A shape is a type (`float`: any finite number), a set of allowed values, a dict of the shapes of its keys (others may be
there), `{str: shape}` for any keys, `[shape]` for a list, and a tuple of shapes for either of them.

A bit that flipped on disk may leave good JSON that says something else. So what is believed later carries a seal, the
digest of everything else it says; and for a file that grows line by line, `.<name>.digests` beside it holds a digest of
every line. A file of an earlier version, or one written by hand without a seal, is taken as it is.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain import atomic
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
    """The object in a JSON file, None where there is no such file; raises DamageError with `remedy`.

    A seal is held against the rest, and left out.
    """
    try:
        value = parse(path.read_text(encoding="utf-8"))
        json.dumps(value, allow_nan=False)  # raises for NaN and infinity, which could not be written again
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamageError(f"{path}: not JSON ({error}); {remedy}") from error
    if fault := mismatch(value, dict) or mismatch(value, shape):
        raise DamageError(f"{path}: {fault}; {remedy}")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise DamageError(f"{path}: was changed or damaged after it was written; {remedy}")
    return value


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace `path` by an object with its seal, which `read_object` looks at."""
    atomic.write_json(path, {**value, SEAL: _digest(value)})


def _digest(value: dict[str, Any]) -> str:
    return bytes_digest(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def read_lines(path: Path, shape: Shape, remedy: str) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file (`.gz`: compressed), empty lines passed over; raises DamageError, which names the
    line and the `remedy`.
    """
    try:
        known = line_digests(path)
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
                if not fault and known is not None and bytes_digest(line.encode()) not in known:
                    fault = "was changed or damaged after it was written"
            except ValueError as error:
                fault = f"not JSON ({error})"
            if fault:
                raise DamageError(f"{path}:{number}: {fault}; {remedy}")
            found.append(value)
    return found


def digests_path(path: Path) -> Path:
    """Where the digests of the lines of a growing file are."""
    return path.with_name(f".{path.name}.digests")


def line_digests(path: Path) -> set[str] | None:
    """Digests of the lines that were written to a growing file; None where nobody wrote any down."""
    try:
        return set(digests_path(path).read_text(errors="replace").split())
    except FileNotFoundError:
        return None


def append(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Add objects to a growing file; a kill in between leaves a digest without its line, never the other way round."""
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    for file, texts in ((digests_path(path), map(bytes_digest, map(str.encode, lines))), (path, lines)):
        with file.open("a") as opened:
            opened.writelines(f"{text}\n" for text in texts)


def rewrite(path: Path, lines: list[bytes]) -> None:
    """Replace a growing file by these of its lines, without their ends."""
    kept = "".join(f"{bytes_digest(line)}\n" for line in lines).encode()
    with digests_path(path).open("ab") as file:  # those of now stay until the file is the new one
        file.write(kept)
    atomic.write_bytes(path, b"".join(line + b"\n" for line in lines))
    atomic.write_bytes(digests_path(path), kept)


def sealed(value: dict[str, Any]) -> str:
    """A line of JSON that carries its own digest, for files that grow line by line."""
    return json.dumps({**value, SEAL: _digest(value)}, ensure_ascii=False) + "\n"


def unsealed(lines: Iterable[bytes], shape: dict[str, Shape]) -> Iterator[dict[str, Any] | None]:
    """The value of each line without its seal; None for a line that is cut, damaged, or not of the shape.

    A line of an earlier version has no seal; it is taken if its keys are those of the shape.
    """
    for line in lines:
        try:
            value = parse(line.decode())
            seal = value.pop(SEAL, None)
            digest = _digest(value)
        except (ValueError, AttributeError, TypeError):
            yield None
            continue
        whole = value.keys() == shape.keys() if seal is None else seal == digest
        yield value if whole and line.endswith(b"\n") and not mismatch(value, shape) else None
