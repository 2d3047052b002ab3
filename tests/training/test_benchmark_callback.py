"""Benchmarks asked while a model trains are those of evaluation, and the best checkpoint is chosen by them."""

import json

import pytest
from conftest import launch, must, run_script

pytestmark = pytest.mark.slow
BENCHMARKS = ("tiny_1step", "tiny_2step")


@pytest.fixture(scope="session")
def run(once, early_sft, whole_tiny_data):
    """Nine steps at a rate that unsettles the model, on two processes, evaluated three times."""
    command = [
        "accelerate_configs/cpu_2proc.yaml", "src/sft.py", "recipes/tiny_sft_early.yaml",
        "--model_name_or_path", early_sft, "--dataset_name", whole_tiny_data / "tiny_math",
        "--data_dir", whole_tiny_data, "--max_steps", 9, "--learning_rate", 3e-4, "--lr_scheduler_type", "constant",
        "--eval_steps", 3, "--save_steps", 3, "--save_total_limit", 4, "--sample_generations", 0,
        "--eval_benchmarks", ",".join(BENCHMARKS), "--eval_questions", 40, "--eval_max_new_tokens", 64,
        "--metric_for_best_model", "mean/accuracy", "--load_best_model_at_end", "true", "--output_dir",
    ]  # fmt: skip
    return once("benchmarks", lambda out: must(launch(*command, out / "run"))) / "run"


def figures(run) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "eval_mean/accuracy" in line}


def test_the_figures_are_those_of_an_evaluation(run, whole_tiny_data, tmp_path):
    done = run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", run / "checkpoint-6", "--data_dir", whole_tiny_data,
        "--benchmarks", ",".join(BENCHMARKS), "--limit", 40, "--max_new_tokens", 64, "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logged = figures(run)[6]
    for name in BENCHMARKS:
        evaluated = json.loads((tmp_path / name / "metrics.json").read_text())
        assert logged[f"eval_{name}/accuracy"] == evaluated["accuracy"]["value"] > 0
        assert logged[f"eval_{name}/accuracy_low"] == evaluated["accuracy"]["low"]
        assert logged[f"eval_{name}/format_rate"] == evaluated["format_rate"]
        assert logged[f"eval_{name}/tokens"] == evaluated["tokens"]["all"]["mean"]


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(run):
    accuracy = {step: line["eval_mean/accuracy"] for step, line in figures(run).items()}
    assert sorted(accuracy) == [3, 6, 9]
    state = json.loads((run / "checkpoint-9/trainer_state.json").read_text())
    assert state["best_metric"] == max(accuracy.values())
    best = run / f"checkpoint-{state['best_global_step']}"
    assert accuracy[state["best_global_step"]] == max(accuracy.values())
    assert (run / "final/model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()


def test_an_unknown_or_missing_benchmark_ends_it_before_a_model_loads(tiny_data, tmp_path):
    command = [
        "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name", tiny_data / "tiny_math", "--data_dir", tmp_path,
        "--output_dir", tmp_path / "run", "--eval_benchmarks",
    ]  # fmt: skip
    for name, expected in (("nothing", "unknown: nothing; known: tiny_1"), ("math500", "missing; benchmark math500")):
        done = run_script(*command, name)
        assert done.returncode == 2
        assert expected in done.stderr and "Traceback" not in done.stderr
