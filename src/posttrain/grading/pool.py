"""Processes that compare answers and can be killed.

Math-Verify's own timeouts are signals: they fail outside the main thread, and some of sympy's work never lets a signal
through. So each worker is a process with a pipe; this side holds the deadline, kills with SIGKILL and goes on with the
next pair. `ProcessPoolExecutor` cannot cancel what already runs, and multiprocessing's start methods would fork this
process with its threads and GPU or run its main script again; a plain subprocess does neither.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from posttrain.errors import PosttrainError
from posttrain.grading.values.rational import Tolerance
from posttrain.grading.worker import SYMBOLIC

Pair = tuple[str, str]
START_SECONDS = 60.0  # importing sympy on a busy machine; the deadline of a pair starts after it
GONE = (EOFError, OSError)  # what talking to a worker raises that is no more
PAIRS_PER_CHILD = 2000  # then a fresh one, as sympy's caches grow
TRIES = 2  # of a pair whose worker died by itself


class VerifierError(PosttrainError):
    """A verifier process that does not start, or whose packages decide otherwise than they must."""


class Worker:
    """A subprocess that keeps one child ready: the child compares, and is killed when it takes too long.

    `index` is the pair it works on, None while it is idle. `serial` counts what was sent and comes back with the
    verdict, so that the verdict of a pair that was given up is never taken for that of the next one.
    """

    def __init__(self, comparison: str, tolerance: Tolerance | None = None) -> None:
        self.index: int | None = None
        self.deadline, self.serial = 0.0, 0
        self.served = 0  # by the child of now
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "posttrain.grading.worker", str(theirs.fileno()), comparison]
        if tolerance is not None:
            command += [str(tolerance.significant_digits or ""), str(tolerance.absolute or "")]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self.pipe: Connection = ours  # type: ignore[assignment]
        try:
            self.child = self._next_child()
        except GONE as error:
            raise VerifierError("a verifier process ended before it was ready; what it said stands above") from error

    def _next_child(self) -> int:
        """The pid of the child that is ready now; verdicts of one that was killed meanwhile are passed over."""
        while self.pipe.poll(START_SECONDS):
            kind, value, _ = self.pipe.recv()
            if kind == "ready":
                return value
            if kind == "fault":
                raise VerifierError(
                    f"the installed packages decide wrongly: {value}; install the versions of pyproject.toml "
                    f"(math-verify, latex2sympy2_extended, antlr4-python3-runtime, sympy)"
                )
        raise VerifierError(
            f"a verifier process was not ready within {START_SECONDS:.0f} s; is the machine overloaded?"
        )

    def send(self, index: int, pair: Pair, deadline_seconds: float) -> None:
        with contextlib.suppress(*GONE):  # then the pipe is at its end, which is noticed where verdicts are read
            if self.served >= PAIRS_PER_CHILD:
                self.interrupt()
            self.served += 1
            self.serial += 1
            self.pipe.send((self.serial, *pair))
        self.index, self.deadline = index, time.monotonic() + deadline_seconds

    def interrupt(self) -> None:
        """Kill the child in the middle of its pair; the next one is forked from a parent that has sympy loaded."""
        self._kill_child()
        self.index, self.served, self.child = None, 0, self._next_child()

    def _kill_child(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it died by itself
            os.kill(self.child, signal.SIGKILL)

    def close(self) -> None:
        """End the process: an idle child leaves when the pipe closes, a busy one is killed."""
        if self.index is not None:
            self._kill_child()
        self.pipe.close()
        try:
            self.process.wait(timeout=2)  # it reaps its child and leaves
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SymbolicPool:
    """Compares pairs of answers in worker processes, each pair within `deadline_seconds` or not at all.

    `comparison` is that of `symbolic`, or a grader of `published`, whose pairs are of a gold and a completion.

    A context manager. Workers start when the first pair comes, and end when this process is gone.
    """

    def __init__(
        self,
        workers: int | None = None,
        deadline_seconds: float = 2.0,
        comparison: str = SYMBOLIC,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.comparison, self.tolerance = comparison, tolerance
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.size = workers or max(1, min(8, (os.cpu_count() or 1) // ranks))
        self.deadline_seconds = deadline_seconds
        self.workers: list[Worker] = []

    def __enter__(self) -> "SymbolicPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.close()
        self.workers = []

    def compare(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, bool | str]]:
        """Index and verdict of each pair as they come: True, False, `timeout` or `error`. Exactly one per pair.

        A pair whose worker dies is tried once more on a fresh one; its neighbours never notice.
        """
        waiting, tries = deque(range(len(pairs))), [0] * len(pairs)
        while waiting or any(worker.index is not None for worker in self.workers):
            while len(self.workers) < min(self.size, len(waiting)):
                self.workers.append(Worker(self.comparison, self.tolerance))
            for worker in [w for w in self.workers if w.index is None]:
                if waiting:
                    index = waiting.popleft()
                    tries[index] += 1
                    worker.send(index, pairs[index], self.deadline_seconds)
            for index, verdict in self._collect():
                if verdict != "died":
                    yield index, verdict
                elif tries[index] < TRIES:
                    waiting.appendleft(index)
                else:
                    yield index, "error"

    def _collect(self) -> Iterator[tuple[int, bool | str]]:
        """What the busy workers say until the nearest deadline, and `timeout` for those that are past it."""
        busy = {worker.pipe: worker for worker in self.workers if worker.index is not None}
        nearest = min(worker.deadline for worker in busy.values())
        ready = wait(list(busy), timeout=max(0.0, nearest - time.monotonic()))
        for worker in busy.values():
            index = worker.index
            assert index is not None
            if worker.pipe in ready:
                verdict = self._receive(worker)
                if verdict is not None:
                    worker.index = None
                    yield index, verdict
            elif time.monotonic() > worker.deadline:
                try:
                    worker.interrupt()
                except GONE:
                    self._forget(worker)
                yield index, "timeout"

    def _receive(self, worker: Worker) -> bool | str | None:
        """A verdict, `died`, or None for what a child says of a pair that was given up."""
        try:
            kind, value, serial = worker.pipe.recv()
        except GONE:  # the whole worker is gone
            self._forget(worker)
            return "died"
        if kind == "ready":  # the child died by itself, and this is its successor
            worker.child = value
            return "died"
        return value if serial == worker.serial else None

    def _forget(self, worker: Worker) -> None:
        worker.close()
        self.workers.remove(worker)
