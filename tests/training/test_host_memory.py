"""A run on a CPU needs no more memory every step, however the lengths of its batches change."""

import itertools
import json
import os
import sys

import pytest
from conftest import REPOSITORY, must, run_script

from posttrain.models.host_memory import TRIM, Holes, give_back, peak_resident_bytes

SCRIPT = REPOSITORY / "tests/helpers/resident.py"
GLIBC = TRIM is not None and sys.platform == "linux"


def test_the_peak_is_in_bytes():
    block = bytearray(os.urandom(1) * 2**26)
    give_back()
    assert len(block) < peak_resident_bytes() < 2**40


def test_holes_are_given_back_when_they_outgrow_what_batches_need():
    holes, held = Holes(), [1000, 1019, 1021, 1015, 1034, 1036, 1005]  # 1,015 bytes are what a batch needs at most
    given = list(itertools.accumulate(holes.outgrow(each) for each in held))
    assert given == [0, 0, 1, 1, 1, 2, 2]


def grown(held: list[int]) -> float:
    """What the last twenty steps hold by what twenty early ones did."""
    return sum(held[-20:]) / sum(held[10:30])


@pytest.mark.exhaustive
@pytest.mark.skipif(not GLIBC, reason="the allocator gives back by itself")
def test_a_hundred_steps_of_grpo_need_no_more_memory(models, tmp_path):
    done = must(run_script(SCRIPT, models / "qwen2", tmp_path, "grpo"))
    held = json.loads(done.stdout.splitlines()[-1])["training"]
    assert len(held) == 100 and grown(held) < 1.02


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="the allocator gives back by itself")
def test_a_hundred_steps_of_random_lengths_need_no_more_memory(models, tmp_path):
    done = must(run_script(SCRIPT, models / "qwen2", tmp_path, "give back"))
    for kind, held in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(held) == 100 and grown(held) < 1.02 and max(held) < 1.06 * held[10], kind
