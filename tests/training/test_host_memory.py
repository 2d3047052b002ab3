"""A run on a CPU needs no more memory every step, however the lengths of its batches change."""

import json
import os
import sys

import pytest
from conftest import REPOSITORY, must, run_script

from posttrain.models.host_memory import TRIM, give_back, peak_resident_bytes

SCRIPT = REPOSITORY / "tests/helpers/resident.py"
GLIBC = TRIM is not None and sys.platform == "linux"


def test_the_peak_is_in_bytes():
    block = bytearray(os.urandom(1) * 2**26)
    give_back()
    assert len(block) < peak_resident_bytes() < 2**40


@pytest.mark.exhaustive
@pytest.mark.skipif(not GLIBC, reason="the allocator gives back by itself")
def test_a_hundred_steps_of_grpo_need_no_more_memory(models, tmp_path):
    done = must(run_script(SCRIPT, models / "qwen2", tmp_path, "grpo"))
    settled, *later = json.loads(done.stdout.splitlines()[-1])["training"][10:]
    assert len(later) == 89 and max(later) < 1.02 * settled


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="the allocator gives back by itself")
def test_a_hundred_steps_of_random_lengths_need_no_more_memory(models, tmp_path):
    done = must(run_script(SCRIPT, models / "qwen2", tmp_path, "give back"))
    resident = json.loads(done.stdout.splitlines()[-1])
    for kind in ("training", "evaluation"):
        settled, *later = resident[kind][10:]
        assert len(later) == 89 and max(later) < 1.02 * settled, kind
