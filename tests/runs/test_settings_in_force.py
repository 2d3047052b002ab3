"""What an accelerate config says is in force, whoever starts the run: read from the model while it trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LAUNCHER, REPOSITORY, config_copy, record, script_environment
from live_settings import LIVE_FILE

pytestmark = pytest.mark.slow
VARLEN = {"gradient_checkpointing": False, "attn_implementation": "varlen_sdpa"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
KEYS = {
    "max_steps": 1, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "sample_generations": 0,
    "num_train_examples": 32, "per_device_train_batch_size": 2, "callbacks": "[live_settings:LiveSettings]",
}  # fmt: skip


def run(command: list[Any], config: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command with the config in the environment, if one is given; the callback's module lies on the path."""
    path = os.pathsep.join(str(REPOSITORY / part) for part in ("src", "tests/helpers"))
    environment = script_environment(config) | {"PYTHONPATH": path}
    return subprocess.run(
        [*map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )


def sft(data: Path, out: Path) -> list[str]:
    values = {"dataset_name": data / "tiny_math", "output_dir": out, **KEYS}
    return ["src/sft.py", "recipes/tiny_sft.yaml", *(str(x) for k, v in values.items() for x in (f"--{k}", v))]


def live(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    """What the callback saw, and what run.json calls effective of it."""
    assert done.returncode == 0, done.stderr[-3000:]
    effective = record(out)["result"]["effective"]
    return json.loads((out / LIVE_FILE).read_text()) | {key: effective[key] for key in ("autocast", "sharding")}


@pytest.fixture(scope="module")
def bf16(tmp_path_factory) -> Path:
    """One process on the CPU that computes in bf16."""
    return config_copy(tmp_path_factory.mktemp("configs"), "cpu", VARLEN, mixed_precision="bf16")


@pytest.fixture(scope="module")
def launched(tiny_data, bf16, tmp_path_factory) -> dict[str, Any]:
    """What one process does under `accelerate launch`."""
    out = tmp_path_factory.mktemp("launched") / "run"
    found = live(run([*LAUNCHER, bf16, *sft(tiny_data, out)]), out)
    assert found["computes_in"] == "bfloat16" and found["weights"] == "float32"
    assert (found["autocast"], found["sharding"]) == ("bf16", "none")
    return found


def test_plain_python(launched, tiny_data, bf16, tmp_path):
    assert live(run([sys.executable, *sft(tiny_data, tmp_path / "run")], bf16), tmp_path / "run") == launched
    assert record(tmp_path / "run")["accelerate"]["mixed_precision"] == "bf16"


def test_train_from_python_twice_under_two_configs(launched, tiny_data, bf16, tmp_path):
    """The second run of a process is under its own config, not under what the first put in force."""
    overrides = {"dataset_name": str(tiny_data / "tiny_math"), **KEYS, "callbacks": ["live_settings:LiveSettings"]}
    code = f"""
import os, posttrain
os.environ["POSTTRAIN_ACCELERATE_CONFIG"] = {str(bf16)!r}
posttrain.train("recipes/tiny_sft.yaml", {overrides!r} | {{"output_dir": {str(tmp_path / "first")!r}}})
os.environ["POSTTRAIN_ACCELERATE_CONFIG"] = "accelerate_configs/cpu.yaml"
posttrain.train("recipes/tiny_sft.yaml", {overrides!r} | {{"output_dir": {str(tmp_path / "second")!r}}})
"""
    done = run([sys.executable, "-c", code])
    assert live(done, tmp_path / "first") == launched
    second = live(done, tmp_path / "second")
    assert (second["computes_in"], second["autocast"]) == ("float32", "no")


@pytest.mark.parametrize("name", ["cpu_2proc", "zero2"])
def test_torchrun(name, tiny_data, tmp_path):
    if name == "zero2":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")
        if not (shutil.which("g++") or shutil.which("c++")):
            pytest.skip("DeepSpeed compiles its CPU communication, and there is no C++ compiler")
    config = config_copy(tmp_path, name, VARLEN, num_processes=2, use_cpu=True, mixed_precision="bf16")
    theirs = live(run([*LAUNCHER, config, *sft(tiny_data, tmp_path / "theirs")]), tmp_path / "theirs")
    ours = live(run([*TORCHRUN, *sft(tiny_data, tmp_path / "ours")], config), tmp_path / "ours")
    assert ours == theirs
    assert (ours["computes_in"], ours["autocast"]) == ("bfloat16", "bf16")
    assert ours["sharding"] == {"cpu_2proc": "ddp", "zero2": "zero2"}[name]


def test_the_training_stage_of_expert_iteration(launched, early_sft, whole_tiny_data, bf16, tmp_path):
    values = {
        "model_name_or_path": early_sft, "dataset_name": whole_tiny_data / "tiny_math", "data_dir": whole_tiny_data,
        "output_dir": tmp_path, "num_rounds": 1, "num_questions": 16, "num_candidates": 2, "benchmarks": "tiny_1step",
        "limit": 2, "max_steps": 1, "callbacks": KEYS["callbacks"],
    }  # fmt: skip
    command = ["src/expert_iteration.py", "recipes/tiny_ei.yaml"]
    command += [str(part) for key, value in values.items() for part in (f"--{key}", value)]
    assert live(run([sys.executable, *command], bf16), tmp_path / "round_1/sft") == launched


def test_the_training_stage_of_a_study(launched, tiny_data, bf16, tmp_path):
    study = {
        "recipe": "recipes/tiny_sft.yaml", "grid": {"seed": [0]}, "eval_recipe": "recipes/tiny_eval.yaml",
        "override": {"dataset_name": str(tiny_data / "tiny_math"), **KEYS, "callbacks": ["live_settings:LiveSettings"]},
        "eval_override": {"benchmarks": "tiny_1step", "limit": 2, "data_dir": str(tiny_data)},
        "output_dir": str(tmp_path / "study"),
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = run([sys.executable, "src/study.py", tmp_path / "study.yaml"], bf16)
    (cell,) = (tmp_path / "study").glob("*/run.json")
    assert live(done, cell.parent) == launched
