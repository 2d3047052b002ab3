"""A machine that is taken away: the first SIGTERM is a notice, upon which a run saves a whole checkpoint and leaves."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from posttrain import processes
from posttrain.errors import PosttrainError

STAGE_SECONDS = 3600.0  # of a stage, which ends within its own seconds of grace
SAME_SECONDS = 2.0  # a launcher passes on what its workers heard already: notices this close are one


@dataclass
class Notice:
    """Whether this process was asked to leave, and by which signal."""

    signum: int | None = None
    seconds: float = 0.0  # of the monotonic clock, when it came

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def grace(seconds: float, tell: Callable[[], None] = lambda: None) -> Iterator[Notice]:
    """Inside, a first SIGTERM or SIGUSR1 is a notice, after which the block has so many seconds to save what it has.

    `tell` is called when it comes. The block raises Preempted itself, or it is raised at its end. A second signal, or
    the end of the seconds, ends this process at once. Without `run_script`, or with 0 seconds, nothing changes.
    """
    notice = Notice()
    if not seconds or signal.SIGTERM not in processes.REPLACED:
        yield notice
        return

    def heard(signum: int, frame: FrameType | None) -> None:
        if not notice:
            notice.signum, notice.seconds = signum, time.monotonic()
            timer.start()
            tell()
        elif time.monotonic() - notice.seconds > SAME_SECONDS:
            processes.give_up(signum, frame)

    def launcher_gone(signum: int, frame: FrameType | None) -> None:
        if not notice:
            back()
            signal.raise_signal(processes.LAUNCHER_GONE)

    def back() -> None:
        signal.signal(signal.SIGUSR1, processes.SET_ASIDE.pop(signal.SIGUSR1))
        for signum in (signal.SIGTERM, processes.LAUNCHER_GONE):
            signal.signal(signum, processes.interrupt)
            processes.REPLACED[signum] = processes.SET_ASIDE.pop(signum)

    timer = threading.Timer(seconds, lambda: processes.cut_off(notice.signum or signal.SIGTERM))
    timer.daemon = True
    for signum, handler in ((signal.SIGTERM, heard), (processes.LAUNCHER_GONE, launcher_gone)):
        processes.SET_ASIDE[signum] = processes.REPLACED.pop(signum)
        signal.signal(signum, handler)
    processes.SET_ASIDE[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, heard)
    try:
        yield notice
        if notice:
            raise processes.Preempted(notice.signum or signal.SIGTERM)
    finally:
        if not notice and signal.SIGTERM in processes.SET_ASIDE:  # else the seconds go on
            back()


@contextmanager
def passed_on() -> Iterator[None]:
    """Inside, a notice is one for every command that `processes.start` started; no other one is started then.

    At the end of the block it is Preempted, whatever became of these commands.
    """

    def tell() -> None:
        processes.ENDED_BY.append(notice.signum or signal.SIGTERM)
        for process in list(processes.RUNNING):
            process.send_signal(signal.SIGUSR1)

    with grace(STAGE_SECONDS, tell) as notice:
        try:
            yield
        except PosttrainError:
            if not notice:
                raise
