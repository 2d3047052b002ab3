"""A command that is ended leaves no process behind, and no other command writes into its directory meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, run_script, script_environment
from test_filter_traces import write_lines
from traces import CHAT, solved

SCRIPT = "data_prep/filter_traces.py"
END_SECONDS = 5.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Files whose rows take minutes."""
    directory = tmp_path_factory.mktemp("shards")
    for number in range(80):
        rows = [solved(number * 1000 + n) for n in range(1000)]
        write_lines(directory / f"{number:02}.jsonl", rows)
    return directory


def begin(shards: Path, out: Path) -> subprocess.Popen[str]:
    """filter_traces on two processes, in a process group of its own, once its first part is there."""
    command = [sys.executable, SCRIPT, shards, *CHAT, "--max-tokens", 512, "--processes", 2, "--out", out]
    process = subprocess.Popen(
        [str(word) for word in command], cwd=REPOSITORY, env=script_environment(None), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.parent.rglob("[!.]*.arrow")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    return process


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_it_is_left_seconds_after_a_signal(shards, tmp_path, signum):
    process = begin(shards, tmp_path / "out")
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 4  # the fork server, its two workers, and those that compare answers
    if signum == signal.SIGTERM:
        command = (shards, *CHAT, "--max-tokens", 512, "--processes", 1, "--out", tmp_path / "out")
        second = run_script(SCRIPT, *command)
        assert second.returncode == 2 and "another process is still writing there" in second.stderr
    (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)  # Ctrl-C reaches the whole group
    said = process.communicate(timeout=60)[1]
    deadline = time.monotonic() + END_SECONDS
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(family), [p.cmdline() for p in alive(family)]
    assert "Traceback" not in said
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum
        assert said.count("interrupted by") == 1
