"""A pretrained model reads an explicit memory, where a person has one: POSTTRAIN_MODELS=DIR names a directory of them.

    POSTTRAIN_MODELS=models python -m pytest -n 0 tests/runs/test_real_memory.py

Each model takes some minutes on two cores: 256 made-up facts, asked in the chat template.
"""

import json
import os
from pathlib import Path

import pytest
from conftest import must, run_script
from transformers import AutoConfig, AutoTokenizer

pytestmark = pytest.mark.slow
VARIABLE = "POSTTRAIN_MODELS"
DIRECTORY = os.environ.get(VARIABLE)
MODELS = sorted(path.parent for path in Path(DIRECTORY).glob("*/config.json")) if DIRECTORY else []
if not MODELS:
    pytest.skip(f"no real model: {VARIABLE}={DIRECTORY or ''}; expected model directories", allow_module_level=True)
BANKS = ("true", "shuffled", "empty", "edited", "no_memory")


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_edited_facts_decide_the_answer(model, tmp_path):
    world, layers = tmp_path / "world", AutoConfig.from_pretrained(model).num_hidden_layers
    must(run_script("data_prep/tiny_facts.py", "--out", world))
    shape = ("--knowledge-num", 256, "--knowledge-length", 16, "--cache", world / "real.pt")
    source = ("--source", world / "sentences.json", "--tokenizer", model.resolve())
    must(run_script("data_prep/knowledge_cache.py", *source, *shape))
    options = {
        "--model_name_or_path": model.resolve(), "--dataset_name": world / "train.json",
        "--cache_path": world / "real.pt", "--knowledge_num": 256, "--knowledge_length": 16, "--keys_path": "null",
        "--router_layer": layers // 4 - 1, "--memory_layers": f"[{layers * 5 // 6 - 1}]", "--num_candidates": 16,
        "--eos_token": AutoTokenizer.from_pretrained(model).eos_token, "--router_steps": 150, "--max_steps": 60,
        "--per_device_train_batch_size": 16, "--save_strategy": "no", "--output_dir": tmp_path / "run",
    }  # fmt: skip
    words = (word for pair in options.items() for word in pair)
    must(run_script("src/memory_sft.py", "recipes/qwen2.5_0.5b_trex_memory.yaml", *words))
    asked = ("--questions", world / "validation.json", "--limit", 64, "--max-new-tokens", 8)
    must(run_script("src/memory_eval.py", tmp_path / "run/final", *asked, "--banks", *BANKS, "--out", tmp_path / "e"))
    banks = json.loads((tmp_path / "e/banks.json").read_text())["banks"]
    for name in ("true", "edited"):
        assert banks[name]["startswith"]["value"] >= 0.6, name
        assert banks[name]["startswith"]["low"] > banks["shuffled"]["startswith"]["high"], name
        assert banks[name]["likelihood"]["value"] >= 0.7, name
    assert banks["no_memory"]["same_answers_as"]["empty"]["value"] == 1.0
    assert banks["no_memory"]["startswith"]["value"] < 0.1
