"""The plan against a GPU, by the kept results of `make bench-gpu`: peak of the memory, and operations a second."""

import json

import pytest
from conftest import REPOSITORY

from posttrain.plan.devices import find_machine
from posttrain.plan.hours import TRAINING_SHARE, training_flops
from posttrain.plan.memory.activations import FLOAT32, HALF
from posttrain.plan.memory.training_sizes import Topology, training_sizes
from posttrain.plan.shapes import read_shape

MODEL = "Qwen/Qwen2.5-1.5B"  # the shape that the suite trains
FOUND = json.loads((REPOSITORY / "docs/results/gpu/plan.json").read_text())
MEAN_DOCUMENT = 1400  # tokens
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


@pytest.mark.parametrize("name", ["sft-varlen_sdpa", "sft-varlen_sdpa-checkpointing"])
def test_the_plans_share_of_the_peak_is_what_a_gpu_reached(name):
    found, shape = json.loads((REPOSITORY / f"docs/results/gpu/{name}.json").read_text()), read_shape(MODEL)
    values = {"trainer": "sft", "model_name_or_path": MODEL, "packing": True, "max_length": 4096}
    topology = Topology(autocast=True, checkpointing=name.endswith("checkpointing"), attention="varlen_sdpa")
    flops = training_flops(shape, training_sizes(values, topology, shape), MEAN_DOCUMENT)
    device = find_machine("H100").device
    assert found["tokens_per_second"] * flops / device.tflops / 1e12 == pytest.approx(TRAINING_SHARE, rel=0.05)
