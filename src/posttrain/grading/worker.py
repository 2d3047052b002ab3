"""What `pool` starts: a process that imports sympy once and keeps one forked child comparing pairs.

The child reads a pair from the pipe, answers, and reads the next. When it is killed or dies, the next one is forked
from here within milliseconds; when the pipe's other end is closed, or its process is gone in the middle of a pair,
both leave.
"""

import contextlib
import functools
import logging
import os
import resource
import select
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType

from posttrain.grading.values.rational import Tolerance
from posttrain.processes import end_with_parent

MEMORY_BYTES = 4 * 2**30  # address space; sympy can ask for all there is
LOOK_SECONDS = 0.5  # between two looks at the process that asks
SYMBOLIC = "symbolic"  # the comparison of posttrain.grading.symbolic; other names are functions of `published`


def main() -> None:
    # The kernel would take the end of the thread that started this process, such as GradeAhead's, for the parent's.
    signal.signal(signal.SIGALRM, functools.partial(leave_without, os.getppid()))
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
    # gmpy2 would do some of sympy's work where no signal reaches it, and answer otherwise where it is installed.
    os.environ["SYMPY_GROUND_TYPES"] = "python"
    from posttrain.grading import published, symbolic

    name, *limits = sys.argv[2:]
    compare = symbolic.symbolic_equal if name == SYMBOLIC else getattr(published, name)
    if limits:
        digits, absolute = limits
        tolerance = Tolerance(int(digits) if digits else None, float(absolute) if absolute else None)
        compare = functools.partial(symbolic.symbolic_equal, tolerance=tolerance)

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    fault = symbolic.warm_up()
    pipe = Connection(int(sys.argv[1]))
    if fault:
        pipe.send(("fault", fault, 0))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
    while True:
        own, child = os.getpid(), os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            end_with_parent(own)
            serve(pipe, compare)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            os._exit(0)


def leave_without(parent: int, signum: int, frame: FrameType | None) -> None:
    """End this process when `parent` is gone; a child in the middle of a pair ends with it."""
    if os.getppid() != parent:
        os._exit(1)


def serve(pipe: Connection, compare: Callable[[str, str], bool | str]) -> None:
    """Answer pairs until the pipe ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(10_000)
    sys.set_int_max_str_digits(20_000)
    os.nice(5)  # training comes first
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        while select.select([pipe], [], [], 0)[0]:  # what the child before this one did not read was given up
            if not os.read(pipe.fileno(), 2**16):
                return
        pipe.send(("ready", os.getpid(), 0))
        while True:
            serial, gold, answer = pipe.recv()
            try:
                verdict: bool | str = compare(gold, answer)
            except Exception:  # sympy raises anything at all on what a model writes; the item is counted as an error
                verdict = "error"
            pipe.send(("verdict", verdict, serial))


if __name__ == "__main__":
    main()
