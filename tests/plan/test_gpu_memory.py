"""The plan's peak against the allocator's of a GPU, by the kept results of `make bench-gpu`."""

import json

import pytest
from conftest import REPOSITORY

from posttrain.plan.memory.activations import FLOAT32, HALF
from posttrain.plan.memory.training_sizes import Topology, training_sizes
from posttrain.plan.shapes import read_shape

MODEL = "Qwen/Qwen2.5-1.5B"  # the shape that the suite trains
FOUND = json.loads((REPOSITORY / "docs/results/gpu/plan.json").read_text())
LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": ["all-linear"]}


@pytest.mark.parametrize("setting", FOUND["settings"], ids=lambda setting: f"{setting['peak'] / 1e9:.1f} GB")
def test_the_plan_is_within_a_twentieth_of_what_a_gpu_allocates(setting):
    weight = {"torch.float32": FLOAT32, "torch.bfloat16": HALF}[setting["dtype"]]
    values = {
        "trainer": "sft", "model_name_or_path": MODEL, "packing": True, "max_length": FOUND["shape"]["length"],
        "per_device_train_batch_size": setting["rows"], "optim": setting["optim"],
        "dtype": "float32" if weight == FLOAT32 else "bfloat16", **(LORA if setting["adapter"] else {}),
    }  # fmt: skip
    topology = Topology(autocast=True, checkpointing=setting["checkpointing"], attention="varlen_sdpa")
    sizes = training_sizes(values, topology, read_shape(MODEL))
    assert sizes.peak == pytest.approx(setting["peak"], rel=0.05)
