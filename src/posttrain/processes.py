"""Children that end with the process that started them, and signals that end a command within seconds.

A child that outlives its parent holds a GPU, a port or a lock. So `start` puts a keeper between the two, which is this
file run as a script: it looks whether its parent is still there, and it ends the command with all of its descendants,
whatever sessions they made and whichever of them died first. A parent's SIGKILL leaves it no other chance.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL of a command and its descendants
END_SECONDS = 3.5  # between a signal and the end of this process, whatever it is doing
LOOK_SECONDS = 0.2  # between two looks of a keeper at its parent
# Of the kernel, when a launcher ended. Its number is above SIGTERM's, so that a SIGTERM for both is handled first.
LAUNCHER_GONE = getattr(signal, "SIGRTMIN", signal.SIGHUP)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, LAUNCHER_GONE)
IN_FORCE = "POSTTRAIN_PUT_IN_FORCE"  # variable: what of accelerate's is in the environment, no launcher set there
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
PARENT_GONE, ADOPT_ORPHANS = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER
REPLACED: dict[signal.Signals, Any] = {}  # signals that this command ends by, with their handlers before
SET_ASIDE: dict[signal.Signals, Any] = {}  # such signals, while they are notices (training.preemption)
RUNNING: set[subprocess.Popen[Any]] = set()  # keepers of this process
ENDED_BY: list[int] = []  # the signal that came
STARTING = threading.Lock()
FORKS_OF: list[int] = []  # this process, while its forks end with it


class Interrupted(SystemExit):
    """A signal asked this command to end; the exit code is a shell's for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Preempted(SystemExit):
    """A command left because its machine is taken away; the same command goes on."""

    def __init__(self, signum: int, saved: str = "what is complete is kept") -> None:
        super().__init__(TRY_AGAIN)
        self.signum, self.saved = signum, saved

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"left upon {name} (exit code {TRY_AGAIN}): {self.saved}, the same command goes on"


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a command that ends with this process, in a session of its own; `options` are Popen's.

    Its exit code is the command's, as a shell would give it.
    """
    keeper = [sys.executable, "-I", os.path.abspath(__file__), str(os.getpid()), *command]
    with STARTING:  # another thread may be ending what runs
        if ENDED_BY:
            raise Interrupted(ENDED_BY[0])
        process = subprocess.Popen(keeper, start_new_session=True, **options)
        RUNNING.add(process)
    return process


def end(process: subprocess.Popen[Any]) -> None:
    """End a started command and all of its descendants; returns when they are gone."""
    process.terminate()
    process.wait()
    with STARTING:
        RUNNING.discard(process)


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A started command for as long as the block lasts."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


def end_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Ask the kernel for `signum` when `parent` ends, of which this process is a fork.

    Only for forks of a process's main thread: the kernel takes the end of the thread that forked for the parent's.
    """
    _prctl(PARENT_GONE, signum)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(128 + signum)


@contextmanager
def forks_end_with_this() -> Iterator[None]:
    """Inside, every fork of the main thread ends with this process, those that a library makes included.

    `multiprocessing.Manager` is one, whose server would wait for its clients for ever.
    """
    FORKS_OF.append(os.getpid())
    try:
        yield
    finally:
        FORKS_OF.clear()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise Interrupted once; what then does not end within seconds is cut off.

    A signal that this process was started to ignore, as `nohup` does, stays ignored. The end of a launcher that started
    this process is such a signal, too.
    """
    end_with_launcher()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            REPLACED[signum] = signal.signal(signum, interrupt)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written at once, even while the main thread is in C code
    threading.Thread(target=_end_in_time, args=(reader,), daemon=True).start()
    try:
        yield
    except Interrupted:
        raise  # the time to end goes on
    except BaseException:
        _restore_handlers()
        raise
    _restore_handlers()


def leave_ctrl_c() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as a command wants that answers to it."""
    if signal.SIGINT in REPLACED:
        signal.signal(signal.SIGINT, REPLACED.pop(signal.SIGINT))


def end_with_launcher() -> None:
    """Follow torchrun or `accelerate launch`, where they started this process: a worker has no use without them.

    One that is gone before the kernel is asked left its worker to another process, such as init.
    """
    if not {"TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_MODE"} & set(os.environ):  # what either tells its workers
        return
    import psutil

    parent, above = os.getppid(), []
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            above.append(process.cmdline() or [""])
    launched = "TORCHELASTIC_RUN_ID" in os.environ or IN_FORCE not in os.environ
    if launched and not any("python" in words[0].lower() for words in above):  # a wrapper in shell may be between
        cut_off(LAUNCHER_GONE)
    if launched or any(is_accelerate(" ".join(words)) for words in above[:1]):
        end_with_parent(parent, LAUNCHER_GONE)


def is_accelerate(command_line: str) -> bool:
    return "accelerate" in command_line and "launch" in command_line


def tell_interrupted(signum: int) -> None:
    """Say once, from the main process alone, what ended this command."""
    if os.environ.get("RANK", "0") == "0":
        line = f"interrupted by {signal.Signals(signum).name}: what is complete is kept"
        with contextlib.suppress(OSError):  # of a terminal that hung up
            print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)


def interrupt(signum: int, frame: FrameType | None) -> None:
    for each in REPLACED:
        signal.signal(each, give_up)
    raise Interrupted(signum)


def give_up(signum: int, frame: FrameType | None) -> None:
    """A second signal: no more cleaning up here; keepers see to the children."""
    os._exit(128 + signum)


def _end_in_time(reader: int) -> None:
    """Thread: when a signal comes, end the children, and this process if it is still there after END_SECONDS."""
    while (signum := os.read(reader, 1)[0]) not in REPLACED:
        pass
    with STARTING:
        ENDED_BY.append(signum)
        for process in RUNNING:
            process.terminate()
    time.sleep(END_SECONDS)
    cut_off(signum)


def cut_off(signum: int) -> None:
    """End this process now, with the line of an interruption."""
    tell_interrupted(signum)
    os._exit(128 + signum)


def _restore_handlers() -> None:
    """Handlers as they were, also in a fork: what its own parent sends it is not meant for this command."""
    if REPLACED:
        signal.set_wakeup_fd(-1)
    for handlers in (REPLACED, SET_ASIDE):
        while handlers:
            signal.signal(*handlers.popitem())


def _begin_fork() -> None:
    _restore_handlers()
    while FORKS_OF:  # its own forks are no concern of this
        end_with_parent(FORKS_OF.pop())


os.register_at_fork(after_in_child=_begin_fork)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # elsewhere a keeper's look at its parent must do
        ctypes.CDLL(None).prctl(option, value)


def keep(parent: int, command: list[str]) -> int:
    """Run a command until it ends, `parent` is gone or SIGTERM comes; leave none of its descendants behind.

    SIGUSR1 is a notice for the command, which is passed on once.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _: asked.append(signum))
    _prctl(ADOPT_ORPHANS, 1)
    own, noticed = os.getpid(), []
    signal.signal(signal.SIGUSR1, lambda signum, _: noticed.append(signum))
    child = subprocess.Popen(command, preexec_fn=lambda: end_with_parent(own))
    import psutil  # noqa: F401  now, while the child starts, as there is no time for it at the end

    while child.poll() is None and os.getppid() == parent and not asked:
        try:
            child.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if noticed.count(signal.SIGUSR1):
                noticed.clear()
                _notify(child.pid)
    _end_descendants()
    code = child.wait()
    return 128 - code if code < 0 else code


def _notify(pid: int) -> None:
    """SIGTERM for a command, or for the workers of a launcher, which would end at once and take them along."""
    import psutil

    with contextlib.suppress(psutil.Error):
        command = psutil.Process(pid)
        workers = command.children() if is_accelerate(" ".join(command.cmdline())) else []
        for process in workers or [command]:
            process.terminate()


def _end_descendants() -> None:
    """SIGTERM for the children and for every orphan that is adopted meanwhile; after the grace, SIGKILL for all."""
    import psutil

    this, told, deadline = psutil.Process(), set(), time.monotonic() + GRACE_SECONDS
    while alive := [process for process in this.children(recursive=True) if _is_alive(process)]:
        late = time.monotonic() > deadline
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late:
                    process.kill()
                elif process not in told and process.ppid() == this.pid:
                    process.terminate()
                    told.add(process)
        time.sleep(0.02)


def _is_alive(process: Any) -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# This process is a server of forks, of multiprocessing or of its twin that pickles more: it ends with the command that
# started it, and its forks with it.
if re.search(r"multiprocess(ing)?\.forkserver", " ".join(sys.orig_argv)):
    from posttrain.console import hold_back_noise

    end_with_parent(os.getppid())
    FORKS_OF.append(os.getpid())
    hold_back_noise()  # what libraries say when the server imports them, nobody asked for
if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
