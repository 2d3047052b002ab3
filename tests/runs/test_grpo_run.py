"""src/grpo.py end to end on CPU: it probes, learns, records, resumes exactly, guards, and refuses what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import LAUNCHER, REPOSITORY, kill_when, launch, must, record, run_script, share_moved

pytestmark = pytest.mark.slow
RECIPE = "recipes/tiny_grpo.yaml"
SMALL = {
    "max_steps": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
    "max_completion_length": 40, "save_steps": 2, "guard_steps": 2, "guard_prompts": 10, "probe": "warn",
    "num_train_examples": 8,  # an epoch is two steps: the resumed run is in its second
}  # fmt: skip
TIMED = ("seconds/", "tokens_per_second", "step_time", "peak_memory_gib")


def arguments(data: Path, model: Path, out: Path, **changes: Any) -> list[str]:
    values = {"dataset_name": data / "tiny_math", "model_name_or_path": model, "output_dir": out, **changes}
    return ["src/grpo.py", RECIPE, *(text for key, value in values.items() for text in (f"--{key}", str(value)))]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines(out / "metrics.jsonl")]


def assert_identical(whole: Path, resumed: Path) -> None:
    for name in ("final/model.safetensors", "completions.jsonl", "guard.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert untimed(whole) == untimed(resumed)


@pytest.fixture(scope="session")
def small_run(once, whole_tiny_data, early_sft) -> Path:
    def make(out: Path) -> None:
        must(launch("accelerate_configs/cpu.yaml", *arguments(whole_tiny_data, early_sft, out / "run", **SMALL)))

    return once("grpo", make) / "run"


def test_the_record_says_what_the_run_was(small_run, early_sft):
    run = record(small_run)
    assert run["finished"] and run["result"]["steps"] == 4
    assert run["inputs"]["model"]["parent_run"].startswith("run-")
    assert run["reward_files"] == {"accuracy": None}
    assert (run["prompt"], run["eos_token"]) == ("chat", "<|im_end|>")
    assert run["result"]["effective"]["weights_dtype"] == "float32"
    assert run["result"]["guard"]["start"]["step"] == 0
    for line in lines(small_run / "metrics.jsonl"):
        phases = [line[f"seconds/{phase}"] for phase in ("generation", "reward", "update")]
        assert all(seconds > 0 for seconds in phases)
        assert sum(line[f"verdict/{v}"] for v in ("correct", "wrong", "unparsed", "truncated", "timeout", "error")) == 1
        assert 0 <= line["effective_prompts"] <= 4
        assert 0 < line["real_positions"] <= 1
    # Nothing moves where no prompt has both verdicts. Each has them in 0.39 of cases: none of 16 once in 2,700 runs.
    signal = any(line["effective_prompts"] for line in lines(small_run / "metrics.jsonl"))
    assert (share_moved(early_sft / "model.safetensors", small_run / "final/model.safetensors") > 0.99) == signal


def test_every_step_has_its_completions(small_run):
    written = lines(small_run / "completions.jsonl")
    assert sorted({line["step"] for line in written}) == [1, 2, 3, 4]  # the probe's are in probe.json alone
    assert {"prompt", "completion", "rewards", "advantage"} <= set(written[0])
    assert all(set(line["rewards"]) == {"accuracy"} for line in written)


def test_a_killed_run_ends_bit_identical(small_run, whole_tiny_data, early_sft, tmp_path):
    command = arguments(whole_tiny_data, early_sft, tmp_path / "run", **SMALL)
    kill_when(tmp_path / "run/checkpoint-2/complete.json", command, "accelerate_configs/cpu.yaml")
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "run")["sessions"][-1]["resumed_from"] == "checkpoint-2"
    assert_identical(small_run, tmp_path / "run")
    before, after = lines(tmp_path / "run/metrics.jsonl")[1:3]  # the step after the checkpoint is one step
    counted = sum(seconds for name, seconds in after.items() if name.startswith("seconds/"))
    tokens = after["tokens_seen"] - before["tokens_seen"]
    assert counted == pytest.approx(tokens / after["tokens_per_second"], rel=0.05)


def test_two_processes_train_and_resume_exactly(whole_tiny_data, early_sft, tmp_path):
    changes = {**SMALL, "per_device_train_batch_size": 4}
    config = "accelerate_configs/cpu_2proc.yaml"
    whole = launch(config, *arguments(whole_tiny_data, early_sft, tmp_path / "whole", **changes))
    assert whole.returncode == 0, whole.stderr[-3000:]
    command = arguments(whole_tiny_data, early_sft, tmp_path / "killed", **changes)
    launcher = [*LAUNCHER[1:], config, *command]
    kill_when(tmp_path / "killed/checkpoint-2/complete.json", launcher, config=None)
    done = launch(config, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_identical(tmp_path / "whole", tmp_path / "killed")
    assert len(lines(tmp_path / "whole/completions.jsonl")) == 4 * 16


def test_lora_with_the_losses_of_cs336(whole_tiny_data, early_sft, tmp_path):
    changes = {**SMALL, "use_peft": "true", "lora_r": 4, "lora_target_modules": "[q_proj, v_proj]", "max_steps": 2}
    for loss in ("no_baseline", "grpo_no_clip"):
        done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / loss, loss_type=loss, **changes))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / loss / "final/adapter_model.safetensors").is_file()
    advantages = [line["rewards"]["accuracy"] for line in lines(tmp_path / "no_baseline/completions.jsonl")]
    assert set(advantages) <= {0.0, 1.0}


def test_the_probe_refuses_a_model_without_signal(whole_tiny_data, tmp_path):
    base = REPOSITORY / "assets/tiny_base"
    command = arguments(whole_tiny_data, base, tmp_path / "run", **{**SMALL, "probe": "refuse"})
    done = run_script(*command, "--eos_token", "<|im_end|>")
    assert done.returncode == 2
    error = done.stderr.partition("error: ")[2].splitlines()[0]  # behind the progress bar
    assert "prompts give no signal" in error and "probe_max_zero_variance" in error
    assert json.loads((tmp_path / "run/probe.json").read_text())["frac_reward_zero_std"] > 0.9
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_the_probe_alone_trains_nothing(whole_tiny_data, early_sft, tmp_path):
    done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "run", **{**SMALL, "probe": "only"}))
    assert done.returncode == 0, done.stderr
    assert "probe: 8 prompts, 32 completions" in done.stdout
    assert not (tmp_path / "run/run.json").exists()


def test_the_guard_ends_a_run_that_unlearns(whole_tiny_data, early_sft, tmp_path):
    changes = {**SMALL, "max_steps": 30, "guard_prompts": 40, "learning_rate": 0.01, "warmup_steps": 0}
    done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "run", **changes))
    assert done.returncode == 0, done.stderr
    assert "accuracy fell from" in done.stdout
    result = record(tmp_path / "run")["result"]
    assert result["steps"] < 30 and result["exit_reason"] == "stopped by a callback"


def test_each_wrong_input_has_one_line(whole_tiny_data, early_sft, tmp_path):
    cases = [
        ({"loss_type": "gspo"}, "loss_type: 'gspo': expected one of grpo"),
        ({"top_p": 0.9}, "top_p: 0.9: expected 1"),
        ({"reward_weights": "[1.0, 2.0]"}, "one weight for each of reward_funcs"),
        ({"reward_funcs": "[acuracy]"}, "reward_funcs: 'acuracy': expected one of accuracy"),
        ({"num_generations": 3}, "must be divisible by num_generations"),
        ({"use_vllm": "true"}, "vllm_mode: missing"),
        ({"use_transformers_continuous_batching": "true"}, "casts the training weights"),
        ({"max_completion_length": 4000}, "max_position_embeddings is"),
        ({"generation_kwargs": "{stop: ['</answer>']}"}, "only vLLM takes stop strings"),
        ({"steps_per_generation": 8, "save_steps": 1}, "lies between two generations"),
    ]
    for changes, expected in cases:
        done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "o", **{**SMALL, **changes}))
        assert done.returncode == 2, (expected, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "o").exists()
