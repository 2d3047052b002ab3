"""Any command, ended by any signal at any moment: nothing stays behind, and the same command ends with the same bytes.

Servers are in test_servers_end.py.
"""

import functools
import hashlib
import itertools
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from ending import crowd, hears, left_after, start
from every_command import COMMANDS, World

from posttrain.recipe.options import StrategyOptions

pytestmark = pytest.mark.slow
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
ALL = list(itertools.product(COMMANDS, SIGNALS))
DRAWN = random.Random(20).sample(ALL, 4)  # in `make test`; `make test-all` tries every command with every signal
CASES = [pytest.param(*case, marks=[] if case in DRAWN else pytest.mark.exhaustive) for case in ALL]
ONCE = ("merge",)  # refuse a directory that is there
KEPT = ("*.parquet", "*.safetensors", "samples.jsonl", "guard.jsonl", "index.html", "*.svg")


def ended_by(signum: signal.Signals) -> tuple[str, str]:
    """How the last line of such a command begins; a trainer that takes steps saves first."""
    return f"interrupted by {signum.name}", f"left upon {signum.name}"


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
    began, heard = time.monotonic(), hears(process) and signum != signal.SIGKILL
    patience = 5 * crowd()
    process.send_signal(signum)
    process.wait(timeout=patience + StrategyOptions.grace)
    seconds, left = time.monotonic() - began, left_after(mark, patience)
    errors = process.stderr.read()
    saved = f"left upon {signum.name}" in errors  # a trainer has its seconds of grace for that
    assert saved or seconds < max(patience, 5 * crowd()), f"{seconds:.1f} s to end: {errors[-2000:]}"
    assert left == []
    done = results(tmp_path) == expected
    alone = "accelerate.commands.launch" not in command  # a launcher has words of its own
    ended = done and process.returncode == -signum  # whose work is done leaves its signals to the system
    if alone and heard and not ended:
        assert process.returncode in (0, 75, 128 + signum), errors[-2000:]
        assert "Traceback" not in errors, errors[-2000:]
        assert process.returncode == 0 or errors.splitlines()[-1].startswith(ended_by(signum))

    if not (done and name in ONCE):
        ended_well(start(command, "again"))
    assert results(tmp_path) == expected != {}
