"""Reward model, DPO, value head and distillation end to end on CPU: they learn, they record, they resume exactly."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import record, run_script
from safetensors.torch import load_file
from verified import write_verified

BASE = "assets/tiny_base"
TIMED = (
    "step_time",
    "tokens_per_second",
    "peak_memory_gib",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "train_runtime",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def data(once, tiny_data) -> Path:
    """Pairs and outcomes of gold solutions against altered ones: of all questions, and of twenty-four."""
    return once("verified", lambda out: write_verified(out, tiny_data))


@dataclass(frozen=True)
class Case:
    """A trainer's recipe and a run of it that ends in its second epoch, with a checkpoint in it."""

    script: str
    recipe: str
    dataset: str
    steps: tuple[int, int]  # of the checkpoint that is resumed from, and of the run
    changes: dict[str, Any]


TEACHER = {"teacher_model_name_or_path": BASE}
QUIET = {"eval_strategy": "no"}
CASES = [
    Case("reward_model", "tiny_reward_model", "few_pairs", (4, 6), QUIET),
    Case("dpo", "tiny_dpo", "few_pairs", (4, 6), QUIET),
    Case("kto", "tiny_kto", "few_outcomes", (10, 12), {**QUIET, "per_device_train_batch_size": 6}),
    Case("value", "tiny_value", "few_outcomes", (16, 20), QUIET),
    Case(
        "distill",
        "tiny_distill",
        "tiny_math",
        (4, 6),
        {"num_train_examples": 24, **TEACHER, "packing": "false", **QUIET},
    ),
    Case("distill", "tiny_distill_on_policy", "tiny_math", (4, 6), {"num_train_examples": 24, **TEACHER}),
]


def command(case: Case, data: Path, out: Path) -> list[str]:
    student = "assets/tiny_half" if case.script == "distill" else BASE
    values = {
        "model_name_or_path": student, "dataset_name": data / case.dataset, "output_dir": out, "logging_steps": 1,
        "max_steps": case.steps[1], "save_steps": case.steps[0], "per_device_train_batch_size": 8,
        "eos_token": "<|im_end|>",
        **case.changes,
    }  # fmt: skip
    if case.recipe == "tiny_distill_on_policy":
        values |= {"max_completion_length": 8, "random_init": "true"}
    return [
        f"src/{case.script}.py",
        f"recipes/{case.recipe}.yaml",
        *(t for k, v in values.items() for t in (f"--{k}", v)),
    ]


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)
def test_a_run_stopped_in_its_second_epoch_ends_bit_identical(case, data, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run_script(*command(case, data, whole), fresh=True)
    assert done.returncode == 0, done.stderr
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "final")
    shutil.rmtree(stopped / f"checkpoint-{case.steps[1]}", ignore_errors=True)
    (stopped / "run.json").write_text(json.dumps({**record(whole), "finished": None, "result": None}))
    done = run_script(*command(case, data, stopped))
    assert done.returncode == 0, done.stderr
    assert record(stopped)["sessions"][-1]["resumed_from"] == f"checkpoint-{case.steps[0]}"
    assert (whole / "final/model.safetensors").read_bytes() == (stopped / "final/model.safetensors").read_bytes()
    assert metrics(whole) == metrics(stopped)
    assert record(whole)["result"]["steps"] == len(metrics(whole)) == case.steps[1]


def test_a_reward_model_ranks_what_it_has_not_seen(data, tmp_path):
    done = run_script(
        "src/reward_model.py", "recipes/tiny_reward_model.yaml", "--model_name_or_path", BASE, "--output_dir",
        tmp_path / "run", "--dataset_name", data / "pairs", "--eos_token", "<|im_end|>", "--num_train_epochs", 4,
        "--learning_rate", 1e-3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = record(tmp_path / "run")["result"]
    assert result["evaluation"]["eval_accuracy"] > 0.8  # of 100 pairs; a coin has so many once in 10^10 runs
    assert load_file(tmp_path / "run/final/model.safetensors")["score.weight"].shape == (1, 128)
