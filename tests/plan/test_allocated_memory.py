"""The plan's peak against what PyTorch allocates in three real steps, by `make bench-plan`."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, script_environment

SETTINGS = (  # of speed/bench_plan.py
    "SFT, float32", "SFT, bf16 autocast", "SFT, packed", "SFT, eager attention", "SFT, checkpointing",
    "SFT, frozen layers", "SFT, Adafactor", "SFT, AdamW of 8 bits", "SFT, two processes", "LoRA over bf16",
    "LoRA, checkpointing", "SFT, all weights", "DPO", "Distillation", "GRPO",
)  # fmt: skip
IN_CI = ("GRPO",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.exhaustive) for name in SETTINGS]
)
def test_the_plan_is_within_a_tenth_of_what_is_allocated(name, tmp_path):
    command = [sys.executable, "speed/bench_plan.py", "--only", name, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=script_environment(None), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["planned"] == pytest.approx(found["allocated"], rel=0.1)
