"""One writer a directory: a lock that ends with the process that holds it, whatever ends the process."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError

LOCK_FILE = ".lock"
HELD: dict[Path, int] = {}  # locks of this process, with their descriptors


class LockError(PosttrainError):
    """A directory that another process is writing to."""


def lock(directory: Path, name: str = LOCK_FILE) -> None:
    """Hold `directory` for this process until it ends; raises LockError while another process holds it.

    A launcher killed alone leaves its workers running; started again, they would write beside the new ones. `name` is
    for commands that write some files of a directory which others may write to as well.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / name
    if path in HELD:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LockError(
            f"{directory}: another process is still writing there; wait for it or end it (fuser {path} names it)"
        ) from None
    HELD[path] = descriptor


def describe(directory: Path, holder: dict[str, Any]) -> None:
    """Write into the lock that this process holds of `directory` who holds it; nothing where it holds none."""
    descriptor = HELD.get(directory.resolve() / LOCK_FILE)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


@contextmanager
def locked(directory: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold `directory` inside the block, unless this process holds it anyway."""
    path = directory.resolve() / name
    if path in HELD:
        yield
        return
    lock(directory, name)
    try:
        yield
    finally:
        os.close(HELD.pop(path))


def locked_file(path: Path) -> AbstractContextManager[None]:
    """Hold a file that is written by itself, or with others named after it."""
    return locked(path.parent, f".{path.name}.lock")
