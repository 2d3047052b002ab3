"""A Llama goes every way that Qwen2 goes: SFT with packing under another rope, evaluation, LoRA, merge, GRPO."""

import json
from pathlib import Path

import pytest
from conftest import must, record, run_script
from safetensors.torch import load_file

from posttrain.models.rope import read_rope

pytestmark = pytest.mark.slow
STEPS = {"--max_steps": 2, "--save_strategy": "no", "--report_to": "none", "--num_train_examples": 40}
SFT = {**STEPS, "--eval_strategy": "no", "--sample_generations": 0, "--max_length": 512}
LORA = {"--use_peft": "true", "--lora_r": 2, "--lora_target_modules": "[all-linear]"}


def run(script: str, recipe: str, out: Path, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (key, value)]
    must(run_script(f"src/{script}.py", f"recipes/{recipe}.yaml", "--output_dir", out, *flags))


@pytest.fixture(scope="module")
def trained(once, models, tiny_data) -> Path:
    """A random Llama after two steps on packed rows, under another rotary base."""
    data = {"--dataset_name": tiny_data / "tiny_math", "--model_name_or_path": models / "llama"}
    rope = {"--rope_theta": 20000, "--packing": "true"}
    return once("llama_sft", lambda out: run("sft", "tiny_sft", out / "run", **data, **SFT, **rope)) / "run"


def test_it_trains_packed_under_another_rope(trained, models):
    run, rope = record(trained), read_rope(trained / "final")
    assert run["result"]["steps"] == 2
    assert run["result"]["effective"]["attn_implementation"] == "varlen_sdpa"
    assert run["rope"]["base"]["rope_theta"] == 10000.0
    assert (rope.rope_theta, rope.source) == (20000.0, "both")
    before, after = load_file(models / "llama/model.safetensors"), load_file(trained / "final/model.safetensors")
    assert all((before[name] != after[name]).any() for name in before)
    assert json.loads((trained / "final/config.json").read_text())["model_type"] == "llama"


def test_it_is_evaluated_under_the_rope_of_lower_loss(trained, tiny_data, tmp_path):
    options = {"--model": trained / "final", "--benchmarks": "tiny_1step", "--data_dir": tiny_data, "--limit": 2}
    run("eval", "tiny_eval", tmp_path, **options, **{"--max_new_tokens": 8})
    choice = json.loads((tmp_path / "tiny_1step/settings.json").read_text())["checkpoint"]["rope_choice"]
    assert set(choice["losses"]) == {"base", "trained"}
    assert choice["used"] == min(choice["losses"], key=choice["losses"].get)


def test_an_adapter_is_trained_and_merged_and_learns_from_rewards(trained, tiny_data, tmp_path):
    data = {"--dataset_name": tiny_data / "tiny_math"}
    run("sft", "tiny_sft", tmp_path / "lora", **data, **{"--model_name_or_path": trained / "final"}, **SFT, **LORA)
    must(run_script("src/merge.py", tmp_path / "lora/final", tmp_path / "merged"))
    options = {
        "--model_name_or_path": tmp_path / "merged", "--max_steps": 1, "--per_device_train_batch_size": 8,
        "--gradient_accumulation_steps": 1, "--num_generations": 4, "--max_completion_length": 8, "--guard_steps": 0,
        "--probe": "warn", "--save_strategy": "no", "--num_train_examples": 8,
    }  # fmt: skip
    run("grpo", "tiny_grpo", tmp_path / "grpo", **data, **options)
    assert record(tmp_path / "grpo")["result"]["steps"] == 1
    assert read_rope(tmp_path / "grpo/final").rope_theta == 20000.0
