"""A machine that is taken away: upon SIGTERM a run saves a whole checkpoint, exits with 75, and goes on bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import LAUNCHER, REPOSITORY, launch, record, run_script, script_environment, start

pytestmark = pytest.mark.slow
NEVER = 1000  # a step at which no checkpoint is due
SHORT = {
    "max_steps": 40, "save_steps": NEVER, "logging_steps": 10, "eval_strategy": "no", "sample_generations": 0,
    "num_train_examples": 64, "per_device_train_batch_size": 2,
}  # fmt: skip
GRPO = {
    "model_name_or_path": REPOSITORY / "assets/tiny_base", "eos_token": "<|im_end|>", "num_train_examples": 8,
    "max_steps": 12, "save_steps": NEVER - NEVER % 4, "logging_steps": 1, "guard_steps": 0, "probe": "off",
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4, "steps_per_generation": 4,
    "max_completion_length": 24,
}  # fmt: skip


def arguments(recipe: str, data: Path, out: Path, **values: object) -> list[str]:
    given = {"dataset_name": data / "tiny_math", "output_dir": out, **values}
    script = f"src/{'grpo' if 'grpo' in recipe else 'sft'}.py"
    return [
        script,
        f"recipes/{recipe}.yaml",
        *(str(part) for key, value in given.items() for part in (f"--{key}", value)),
    ]


def left(command: list[str], out: Path, signum: int, config: str | None = "accelerate_configs/cpu.yaml") -> int:
    """Send a signal to a run's process once it takes steps; its exit code."""
    process = start(command, config)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    psutil.Process(process.pid).send_signal(signum)
    return process.wait(120)


def test_a_run_that_is_asked_to_leave_saves_exits_with_75_and_resumes_exactly(tiny_data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "left"
    done = run_script(*arguments("tiny_sft", tiny_data, whole, **SHORT))
    assert done.returncode == 0, done.stderr
    command = arguments("tiny_sft", tiny_data, out, **SHORT)
    assert left(command, out, signal.SIGTERM) == 75
    ended = record(out)["sessions"][-1]["ended"]
    assert ended["signal"] == "SIGTERM" and ended["step"] >= SHORT["logging_steps"]
    assert (out / f"checkpoint-{ended['step']}/complete.json").is_file()
    again = run_script(*command)
    assert again.returncode == 0, again.stderr
    assert record(out)["sessions"][-1]["resumed_from"] == f"checkpoint-{ended['step']}"
    assert (whole / "final/model.safetensors").read_bytes() == (out / "final/model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_grpo_leaves_between_two_generations(tiny_data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "left"
    done = run_script(*arguments("tiny_grpo", tiny_data, whole, **GRPO))
    assert done.returncode == 0, done.stderr
    command = arguments("tiny_grpo", tiny_data, out, **GRPO)
    assert left(command, out, signal.SIGUSR1) == 75
    assert record(out)["sessions"][-1]["ended"]["step"] % GRPO["steps_per_generation"] == 0
    assert run_script(*command).returncode == 0
    assert (whole / "final/model.safetensors").read_bytes() == (out / "final/model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_without_grace_a_signal_ends_the_run_at_once(tiny_data, tmp_path):
    command = arguments("tiny_sft", tiny_data, tmp_path / "run", **SHORT, grace=0)
    assert left(command, tmp_path / "run", signal.SIGTERM) == 128 + signal.SIGTERM
    assert "ended" not in record(tmp_path / "run")["sessions"][-1]


@pytest.mark.exhaustive
def test_a_second_signal_ends_a_run_at_once(tiny_data, tmp_path):
    out = tmp_path / "run"
    # One step takes longer than the two seconds in which two signals are one.
    slow = {**SHORT, "gradient_accumulation_steps": 400, "max_steps": 3, "logging_steps": 1}
    process = start(arguments("tiny_sft", tiny_data, out, **slow), "accelerate_configs/cpu.yaml")
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.01)
    psutil.Process(process.pid).send_signal(signal.SIGTERM)
    time.sleep(2.5)
    psutil.Process(process.pid).send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM
    assert not list(out.glob("checkpoint-*"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("whom", ["one worker", "the launcher"])
def test_two_processes_leave_together(whom, tiny_data, tmp_path):
    """Also where one of them alone is told, and where torchrun passes on what it was told."""
    out, config = tmp_path / "run", "accelerate_configs/cpu_2proc.yaml"
    command = arguments("tiny_sft", tiny_data, out, **SHORT)
    process = start([*LAUNCHER[1:], config, *command], config=None)
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    (launcher if whom == "the launcher" else launcher.children()[-1]).terminate()
    assert process.wait(60) != 0
    ended = record(out)["sessions"][-1]["ended"]
    assert (out / f"checkpoint-{ended['step']}/complete.json").is_file()
    again = launch(config, *command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert record(out)["sessions"][-1]["resumed_from"] == f"checkpoint-{ended['step']}"


@pytest.mark.exhaustive
def test_the_loop_of_the_example_ends_with_a_finished_run(tiny_data, tmp_path):
    out = tmp_path / "run"
    command = ["bash", "examples/spot.sh", sys.executable, *arguments("tiny_sft", tiny_data, out, **SHORT)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=script_environment(), stdout=subprocess.DEVNULL)
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.01)
    process.terminate()
    assert process.wait(300) == 0
    assert [session.get("ended", {}).get("signal") for session in record(out)["sessions"]] == ["SIGTERM", None]
    assert record(out)["finished"]


@pytest.mark.exhaustive
def test_a_pipeline_passes_the_notice_on_to_its_stage(whole_tiny_data, early_sft, tmp_path):
    """Expert iteration leaves with 75 from the middle of its fine-tuning, whose checkpoint it goes on from."""
    sampled = {"num_questions": 16, "num_candidates": 2, "batch_size": 8, "limit": 4}
    values = {
        "dataset_name": whole_tiny_data / "tiny_math", "data_dir": whole_tiny_data, "benchmarks": "tiny_1step",
        "num_rounds": 1, "model_name_or_path": early_sft, "num_train_epochs": 10, "save_strategy": "no",
        "logging_steps": 1, **sampled,
    }  # fmt: skip
    flags = [str(part) for key, value in values.items() for part in (f"--{key}", value)]
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = ["src/expert_iteration.py", "recipes/tiny_ei.yaml", *flags, "--output_dir"]
    assert run_script(*command, whole).returncode == 0
    assert left([*command, str(run)], run / "round_1/sft", signal.SIGTERM) == 75
    stage = json.loads((run / "round_1/sft/run.json").read_text())
    assert stage["sessions"][-1]["ended"]["signal"] == "SIGTERM"
    assert run_script(*command, run).returncode == 0
    names = [path / "final/model.safetensors" for path in (whole, run)]
    assert names[0].read_bytes() == names[1].read_bytes()
