"""The memory of this process outside of any GPU, and freed buffers given back to the system.

glibc keeps what a program frees in order to hand it out again. Buffers of a training step are of ever other sizes, as
batches are of ever other lengths, and hardly fit into the holes of those before: resident memory creeps up for hours,
until the system kills the run. To give the holes back between steps costs the time to fill them with zeros once more.
"""

import ctypes
import os

# Only glibc has it. Other allocators, as those of macOS and musl, give back by themselves.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def give_back() -> None:
    """Hand freed memory to the system, from the holes between what is in use too; nothing where glibc is not."""
    if TRIM is not None:
        TRIM(0)


def peak_resident_bytes() -> int:
    """The most that this process ever held in memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
