"""One writer a directory: a lock that ends with the process that holds it, whatever ends the process."""

import fcntl
import os
from pathlib import Path

from posttrain.errors import PosttrainError

LOCK_FILE = ".lock"
HELD: set[Path] = set()  # locks of this process


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
    HELD.add(path)
