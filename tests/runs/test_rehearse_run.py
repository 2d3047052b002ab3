"""Recipes rehearsed end to end: every shipped one passes, whatever its method, without its data or its model."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, config_copy, run_script

from posttrain.jsonl import SEAL

pytestmark = pytest.mark.slow
RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
LORA = ("--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "[all-linear]")
EVERYTHING = {
    "recipe", "accelerate config", "plan", "model", "dataset", "disk", "rows", "budget", "end token",
    "tokenizer of the rows", "batches", "adapter", "packing and three steps", "SIGKILL and resume", "merge",
    "eight questions", "report",
}  # fmt: skip


def rehearsed(out: Path, recipe: str, *arguments: object) -> dict[str, dict[str, str]]:
    """Checks by name of a rehearsal that passes."""
    done = run_script("src/rehearse.py", f"recipes/{recipe}.yaml", "--out", out, "--stand-in-data", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    record = json.loads((out / "rehearsal.json").read_text())
    assert record["passed"] and SEAL not in record
    return {check["name"]: check for check in record["checks"]}


def test_an_adapter_is_trained_killed_resumed_merged_evaluated_and_reported(tmp_path):
    out = tmp_path / "out"
    checks = rehearsed(out, "tiny_sft", *LORA)
    assert set(checks) == EVERYTHING
    made_up = set() if (REPOSITORY / "data/tiny_math").exists() else {"dataset"}  # the demo leaves it there
    assert {name for name, check in checks.items() if check["state"] != "passed"} == made_up
    assert checks["SIGKILL and resume"]["detail"].startswith("from checkpoint-1, then bit for bit the same")
    assert checks["merge"]["detail"].startswith("logits differ from base and adapter by at most")
    assert (out / "report/index.html").is_file() and not list(out.rglob("*.safetensors"))  # weights are not kept
    assert not (REPOSITORY / "outputs/tiny_sft/rehearsal.json").exists()


@pytest.mark.exhaustive
def test_packing_under_an_attention_that_mixes_rows_is_named_before_a_step(tmp_path):
    config = config_copy(tmp_path, "cpu", toggles={"attn_implementation": "eager"})
    done = run_script("src/rehearse.py", "recipes/tiny_sft.yaml", config, "--out", tmp_path / "out", "--stand-in-data")
    lines = (REPOSITORY / "recipes/tiny_sft.yaml").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, start=1) if line.startswith("packing:"))
    assert done.returncode == 1
    assert f"recipes/tiny_sft.yaml:{number}: packing: True: " in done.stdout, done.stdout
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


@pytest.mark.exhaustive
def test_two_processes_are_two_processes_here(tmp_path):
    checks = rehearsed(tmp_path / "out", "tiny_sft", "accelerate_configs/zero2.yaml")
    assert "on 2 processes" in checks["packing and three steps"]["detail"]
    differences = json.loads((tmp_path / "out/rehearsal.json").read_text())["differences"]
    assert differences["processes"] == "2 over gloo here, 8 there" and "ZeRO-2" in differences["sharding"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_shipped_recipe_raises_an_alarm(recipe, tmp_path, shared_data):
    tokenizer = shared_data / "tokenizers/qwen2.5"
    checks = rehearsed(tmp_path / "out", recipe, "--tokenizer", tokenizer, "--stand-in-data")
    trainer = yaml.safe_load((REPOSITORY / f"recipes/{recipe}.yaml").read_text())["trainer"]
    if trainer not in ("eval", "sample", "memory_sft"):
        assert checks["SIGKILL and resume"]["state"] == "passed"
