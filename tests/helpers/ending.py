"""Commands that are ended in the middle, and what is left of them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from conftest import REPOSITORY, script_environment

MARK = "POSTTRAIN_TEST_MARK"


def start(command: list[str], mark: str, **environment: str) -> subprocess.Popen[str]:
    """A command of the repository by a new interpreter, which `marked` finds again with all that it starts."""
    launched = "accelerate.commands.launch" in command
    own = script_environment(None if launched else "accelerate_configs/cpu.yaml") | {MARK: mark} | environment
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=own, text=True, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c,
    )  # fmt: skip


def hear_ctrl_c() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, and a command leaves it at that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that a command started, wherever they ended up."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def left_after(mark: str, seconds: float) -> list[str]:
    """What is still there after so many seconds; it is killed."""
    deadline = time.monotonic() + seconds
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = [" ".join(process.cmdline())[:120] for process in left]
    for process in left:
        process.kill()
    return names


def crowd() -> float:
    """How many times slower this machine is than an idle one, which the five seconds of a command are meant for."""
    running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])  # now; the average is of a minute
    return max(1.0, max(running, os.getloadavg()[0]) / (os.cpu_count() or 1))


def hears(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a handler of its own for SIGTERM, as a command has from its first second on."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return False
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)
