"""What measures on a GPU runs on a CPU with small shapes."""

import json

import pytest
from conftest import must, run_script


@pytest.mark.exhaustive
def test_every_slice_runs_or_says_why_not(tmp_path):
    done = must(run_script("speed/gpu_suite.py", tmp_path, "--tiny", fresh=True))
    outcomes = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[-17:])
    skipped = {name for name, outcome in outcomes.items() if outcome == "skipped"}
    assert {"plan", "grpo"} <= skipped and all(outcome in ("done", "skipped") for outcome in outcomes.values())
    assert "sft-varlen_sdpa" not in skipped
    for name in outcomes.keys() - skipped:
        assert json.loads((tmp_path / f"{name}.json").read_text())["device"] == "CPU"
    again = must(run_script("speed/gpu_suite.py", tmp_path, "--tiny", "--only", "ceilings", fresh=True))
    assert "kept from before" in again.stdout
