"""Any command, ended by any signal at any moment: nothing stays behind, and the same command ends with the same bytes.

Servers are in test_servers_end.py.
"""

import functools
import hashlib
import itertools
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, script_environment
from every_command import COMMANDS, World

pytestmark = pytest.mark.slow
MARK = "POSTTRAIN_TEST_MARK"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
STARTED = 2.0  # seconds after which a command hears signals itself
ALL = list(itertools.product(COMMANDS, SIGNALS))
DRAWN = random.Random(20).sample(ALL, 4)  # in `make test`; `make test-all` tries every command with every signal
CASES = [pytest.param(*case, marks=[] if case in DRAWN else pytest.mark.exhaustive) for case in ALL]
ONCE = ("merge",)  # refuse a directory that is there
KEPT = ("*.parquet", "*.safetensors", "samples.jsonl", "guard.jsonl", "index.html", "*.svg")


def start(command: list[str], mark: str) -> subprocess.Popen[str]:
    launched = "accelerate.commands.launch" in command
    environment = script_environment(None if launched else "accelerate_configs/cpu.yaml") | {MARK: mark}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that a command started, wherever they ended up."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def ended_by(signum: signal.Signals) -> tuple[str, str]:
    """How the last line of such a command begins; a trainer that takes steps saves first."""
    return f"interrupted by {signum.name}", f"left upon {signum.name}"


def left_after(mark: str, seconds: float) -> list[str]:
    """What is still there after so many seconds; it is killed."""
    deadline = time.monotonic() + seconds
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = [" ".join(process.cmdline())[:120] for process in left]
    for process in left:
        process.kill()
    return names


def results(out: Path) -> dict[str, str]:
    """Digests of what a command made that no clock is in."""
    kept = [path for pattern in KEPT for path in out.rglob(pattern)]
    places = {path: str(path.relative_to(out)) for path in kept}
    return {
        place: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, place in places.items()
        if "checkpoint-" not in place and not place.startswith((".", "run/."))
    }


@pytest.fixture(scope="module")
def world(once, whole_tiny_data) -> World:
    return World(once, whole_tiny_data)


Whole = Callable[[str], tuple[dict[str, str], float]]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Whole:
    """What a command leaves that nobody ends, and the seconds that it takes."""

    @functools.cache
    def run(name: str) -> tuple[dict[str, str], float]:
        out = tmp_path_factory.mktemp("whole")
        command, began = COMMANDS[name](world, out), time.monotonic()
        ended_well(start(command, "whole"))
        return results(out), time.monotonic() - began

    return run


def ended_well(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.parametrize(("name", "signum"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_signal_leaves_nothing_behind_and_costs_no_byte(name, signum, world, whole, tmp_path):
    expected, took = whole(name)
    mark, command = uuid.uuid4().hex, COMMANDS[name](world, tmp_path)
    process = start(command, mark)
    moment = random.uniform(0.05, 0.95) * took
    print(f"{name}: {signum.name} after {moment:.2f} of {took:.2f} s")
    time.sleep(moment)
    began = time.monotonic()
    process.send_signal(signum)
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # the five seconds are those of an idle machine
    process.wait(timeout=5 * crowd)
    assert left_after(mark, 5 * crowd - (time.monotonic() - began)) == []
    errors = process.stderr.read()
    alone = "accelerate.commands.launch" not in command  # a launcher has words of its own
    done = results(tmp_path) == expected
    if alone and moment > STARTED * crowd and signum != signal.SIGKILL and not (done and process.returncode == -signum):
        assert process.returncode in (0, 75, 128 + signum), errors[-2000:]
        assert "Traceback" not in errors, errors[-2000:]
        assert process.returncode == 0 or errors.splitlines()[-1].startswith(ended_by(signum))

    if not (done and name in ONCE):
        ended_well(start(command, "again"))
    assert results(tmp_path) == expected != {}
