"""bf16 on a CPU learns what float32 learns: autocast over float32 weights, and LoRA over a bf16 base."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_trainer import LORA, build

from posttrain.methods.sft import RecipeTrainer

STEPS = 100
TOLERANCE = 0.01  # largest difference of two curves at any step, as a share of the loss


@pytest.fixture(autouse=True)
def precision_of_its_own() -> Iterator[None]:
    """Accelerate keeps the precision of a process's first trainer."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(model: Path, out: Path, keys: dict[str, Any], bf16: bool, rate: float) -> tuple[list[float], RecipeTrainer]:
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build(model, out, keys, bf16=bf16, max_steps=STEPS, learning_rate=rate, weight_decay=0.0)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "keys, base, rate, falls",
    [
        ({}, "float32", 2e-3, 2.0),
        (LORA | {"lora_r": 16, "lora_dropout": 0.0}, "bfloat16", 5e-3, 0.3),  # little: the rest of it is random
    ],
    ids=["autocast", "LoRA over a bf16 base"],
)
def test_the_loss_curve_is_that_of_float32(models, tmp_path, keys, base, rate, falls):
    exact, _ = trained(models / "qwen2", tmp_path / "float32", keys, bf16=False, rate=rate)
    rounded, trainer = trained(models / "qwen2", tmp_path / "bf16", {**keys, "dtype": base}, bf16=True, rate=rate)
    weights = dict(trainer.model.named_parameters())
    assert {p.dtype for p in weights.values() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in weights.values() if not p.requires_grad} <= {getattr(torch, base)}
    differences = [abs(one - other) / one for one, other in zip(exact, rounded, strict=True)]
    assert len(exact) == STEPS and exact[0] - exact[-1] > falls
    assert 0 < max(differences) < TOLERANCE
