"""Processes on two machines go on from one checkpoint, also where one of them sees the shared directory late."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from made_checkpoint import make

from posttrain.generation.vllm.local_server import free_port
from posttrain.training.resume import seconds_before

PROCESS = """
import sys
from pathlib import Path
from accelerate import PartialState
from posttrain.training import resume
resume.SIGHT_SECONDS = float(sys.argv[1])
PartialState(cpu=True)
try:
    print(resume.resume_point(Path(sys.argv[2])))
except resume.SightError as error:
    print(error)
"""


def resumed(views, seconds):
    """What each of two processes says, each with a view of its own of one output directory."""
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(seconds), str(view)], stdout=subprocess.PIPE, text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, view in enumerate(views)
    ]  # fmt: skip
    return [process.communicate(timeout=120)[0].strip() for process in started]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_main_process_chooses_and_the_other_waits_until_it_sees_it(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for view in (first, second):
        view.mkdir()
        make(view, 4)
    newest = make(first, 8)

    def show() -> None:
        time.sleep(6)
        shutil.copytree(newest, second / "arriving")
        (second / "arriving").rename(second / newest.name)

    threading.Thread(target=show).start()
    said = resumed((first, second), 60)
    assert said == [str(first / "checkpoint-8"), str(second / "checkpoint-8")]


@pytest.mark.slow
def test_a_process_that_never_sees_it_says_so(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for view in (first, second):
        view.mkdir()
    make(first, 8)
    ours, theirs = resumed((first, second), 1)
    assert ours == str(first / "checkpoint-8")
    assert theirs.startswith(f"{second / 'checkpoint-8'}: the run goes on from there, and this machine does not see it")


def test_a_resumed_run_counts_the_steps_of_earlier_sessions(tmp_path):
    history = [
        {"step": 5, "loss": 1.0, "tokens_seen": 500, "tokens_per_second": 100.0},
        {"step": 5, "eval_loss": 1.0},
        {"step": 10, "loss": 0.9, "tokens_seen": 1100, "tokens_per_second": 50.0},
        {"step": 15, "loss": 0.8, "tokens_seen": 1600, "tokens_per_second": 10.0},  # of the session that goes on
    ]
    assert seconds_before(history, tmp_path / "checkpoint-10") == 5 + 12
    assert seconds_before(history, tmp_path / "checkpoint-5") == 5
    assert seconds_before(history, None) == 0
