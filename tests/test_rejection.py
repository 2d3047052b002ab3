"""Rejection SFT: the guide's flags, and its walk-through on the tiny world."""

import json
import re

import pytest
from conftest import launch, run_script

from posttrain.rejection import translate


def test_the_guides_flags_become_fields():
    argv, switches = translate(["r.yaml", "--max-samples", "5", "--eval-size=7", "--checkpoint", "--lora_r", "2"])
    assert argv == ["r.yaml", "--num_questions", "5", "--limit=7", "--lora_r", "2"]
    assert switches == {"--checkpoint"}


@pytest.mark.slow
def test_the_walk_through(tmp_path):
    data, early, out = tmp_path / "data", tmp_path / "early", tmp_path / "out"
    assert run_script("data_prep/tiny_math.py", "--out", data).returncode == 0
    done = launch(
        "accelerate_configs/cpu.yaml", "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name", data / "tiny_math",
        "--output_dir", early, "--eval_strategy", "no", "--sample_generations", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    command = [
        "src/rejection_sft.py", "recipes/qwen2_0.5b_gsm8k_rejection_lora.yaml", "--max-samples", 8,
        "--num-candidates", 2, "--epochs", 1, "--eval-size", 10, "--checkpoint", "--output-dir", out,
        "--model_name_or_path", early / "final",
        "--dataset_name", data / "tiny_math", "--data_dir", data, "--benchmarks", "tiny_1step",
        "--max_new_tokens", 72, "--max_length", 256, "--temperature", 0.5,
    ]  # fmt: skip
    done = run_script(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (out / "rejection_sft.stdout").read_text()
    phases = ("Creating Training Run", "Populating Rejection Buffer", "Rejection SFT Training Loop", "Final Evaluation")
    places = [text.index(f"=== Phase {number}: {name} ===") for number, name in enumerate(phases, 1)]
    assert places == sorted(places)
    assert len(re.findall("Epoch.*accuracy", text)) == 1 and re.search(r"Accuracy: \d+\.\d\d%", text)
    entries = [json.loads(line) for line in (out / "rejection_buffer.jsonl").read_text().splitlines()]
    assert len(entries) == 8 and all(len(entry["candidates"]) == 2 for entry in entries)
    assert all(entry["trained"] == entry["is_correct"] == (entry["num_accepted"] > 0) for entry in entries)
    results = json.loads((out / "rejection_sft_results.json").read_text())
    assert results["run_id"] and results["evaluation_metrics"]["total_examples"] == 10 and results["buffer_size"] == 8
    (kept,) = out.glob("checkpoints/*/rejection_sft_epoch_1")
    assert (kept / "adapter_model.safetensors").is_file() and (kept / "optimizer.pt").is_file()
    done = run_script("data_prep/rejection.py", "--audit", out / "round_1/data")
    assert done.returncode == 0, done.stderr
