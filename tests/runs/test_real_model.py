"""Real pretrained models go every way, where a person has some: POSTTRAIN_MODELS=DIR names a directory of them.

    POSTTRAIN_MODELS=models python -m pytest -n 0 tests/runs/test_real_model.py

Each directory in DIR with a config.json, and each GGUF file, takes a few minutes on two cores. The questions are those
of the demo, so nothing is downloaded.
"""

import json
import os
from pathlib import Path

import pytest
from conftest import REPOSITORY, must, record, run_script
from safetensors.torch import load_file
from transformers import AutoTokenizer

from posttrain.data.benchmarks import load_benchmarks
from posttrain.evaluation.settings import ask
from posttrain.generation.packed_weights import pack_weights
from posttrain.models.loading import load_model, read_checkpoint
from posttrain.recipe.sampling_options import EvalOptions

pytestmark = pytest.mark.slow
VARIABLE = "POSTTRAIN_MODELS"
DIRECTORY = os.environ.get(VARIABLE)
MODELS = sorted(path.parent for path in Path(DIRECTORY).glob("*/config.json")) if DIRECTORY else []
FILES = sorted(Path(DIRECTORY).glob("*.gguf")) if DIRECTORY else []
if not MODELS + FILES:
    reason = (
        f"no real model: {VARIABLE}={DIRECTORY or ''}; expected a directory that holds model directories or GGUF files"
    )
    pytest.skip(reason, allow_module_level=True)

LORA = {
    "--use_peft": "true", "--lora_r": 4, "--lora_alpha": 8, "--lora_target_modules": "[all-linear]",
    "--dtype": "bfloat16", "--max_steps": 1, "--save_strategy": "no",
}  # fmt: skip


@pytest.fixture(scope="module", params=[*MODELS, *FILES], ids=lambda path: path.name)
def model(request, tmp_path_factory) -> Path:
    """A model directory; that of a GGUF file is made first."""
    if request.param.is_dir():
        return request.param
    out = tmp_path_factory.mktemp("imported") / request.param.stem
    must(run_script("src/import_gguf.py", request.param.resolve(), out))
    return out


@pytest.fixture(scope="module")
def adapter(model, tiny_data, tmp_path_factory) -> Path:
    """One step of LoRA on eight solutions."""
    out = tmp_path_factory.mktemp("lora") / model.name
    options = {
        **LORA,
        "--num_train_examples": 8,
        "--per_device_train_batch_size": 4,
        "--gradient_accumulation_steps": 2,
    }
    run("sft", "qwen2.5_0.5b_gsm8k_sft", model, tiny_data, out, **options)
    return out


def run(method: str, recipe: str, model: Path, data: Path, out: Path, **options: object) -> None:
    wanted = {
        "--model_name_or_path": model.resolve(), "--dataset_name": data / "tiny_math", "--output_dir": out,
        "--eos_token": AutoTokenizer.from_pretrained(model).eos_token, **options,
    }  # fmt: skip
    must(run_script(f"src/{method}.py", f"recipes/{recipe}.yaml", *(w for pair in wanted.items() for w in pair)))


def evaluated(model: Path, data: Path, out: Path, questions: int) -> dict:
    command = ("src/eval.py", "recipes/qwen2.5_0.5b_gsm8k_eval.yaml", "--model", model.resolve(), "--data_dir", data)
    options = ("--benchmarks", "tiny_1step", "--limit", questions, "--max_new_tokens", 96, "--output_dir", out)
    must(run_script(*command, *options))
    return json.loads((out / "tiny_1step/metrics.json").read_text())


@pytest.mark.parametrize(("dtype", "budget"), [("float32", 24), ("bfloat16", 64)])
def test_it_samples_what_generate_does(model, tiny_data, dtype, budget, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "speed")
    from bench_real import by_generate, in_slots
    from divergence import EPSILON, divergences

    checkpoint = read_checkpoint(str(model))
    options = EvalOptions(
        trainer="eval", model=str(model), benchmarks="tiny_1step", prompt="chat", seed=0, max_new_tokens=budget
    )  # fmt: skip
    (asked,) = ask(load_benchmarks("tiny_1step", tiny_data, 8), options, checkpoint)
    plain, packed = load_model(checkpoint, dtype), pack_weights(load_model(checkpoint, dtype))
    theirs = by_generate(plain, asked.ids, asked.decoding, 8, checkpoint.tokenizer.pad_token_id)
    ours = in_slots(packed, asked.ids, asked.decoding, 5)
    exact = plain if dtype == "float32" else load_model(checkpoint, "float32")
    found = divergences(exact, asked.ids, ours, theirs)
    assert len(found) == 0 or dtype == "bfloat16"
    assert all(divergence.gap < EPSILON[plain.dtype] for divergence in found), found


def test_it_answers(model, tiny_data, tmp_path):
    found = evaluated(model, tiny_data, tmp_path, 8)
    assert found["n"] == 8
    assert found["tokens"]["all"]["mean"] > 5
    assert found["backend"]["dtype"] == "bfloat16"


def test_an_adapter_learns_and_is_merged_and_answers(model, adapter, tiny_data, tmp_path):
    assert record(adapter)["result"]["steps"] == 1
    done = must(run_script("src/merge.py", adapter / "final", tmp_path / "merged", "--dtype", "bfloat16"))
    assert "logits differ" in done.stdout
    assert evaluated(tmp_path / "merged", tiny_data, tmp_path / "evals", 2)["n"] == 2


def test_grpo_takes_a_step(model, tiny_data, tmp_path):
    options = {
        **LORA, "--max_completion_length": 64, "--num_generations": 4, "--per_device_train_batch_size": 4,
        "--gradient_accumulation_steps": 2, "--probe": "off", "--guard_steps": 0, "--learning_rate": 1e-4,
    }  # fmt: skip
    run("grpo", "qwen2.5_0.5b_gsm8k_grpo", model, tiny_data, tmp_path / "grpo", **options)
    assert record(tmp_path / "grpo")["result"]["steps"] == 1
    weights = load_file(tmp_path / "grpo/final/adapter_model.safetensors")
    moved = [weight.abs().max().item() > 0 for name, weight in weights.items() if "lora_B" in name]
    signal = json.loads((tmp_path / "grpo/metrics.jsonl").read_text().splitlines()[0])["effective_prompts"] > 0
    assert all(moved) == signal  # where all answers of each question earn the same, nothing can be learnt
