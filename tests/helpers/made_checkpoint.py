"""A checkpoint that was trained by nobody: the files that make one whole, and its mark."""

from pathlib import Path

import torch
from transformers import TrainerState

from posttrain.models import checkpoints


def make(directory: Path, step: int, complete: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "optimizer.pt").write_bytes(b"moments")
    torch.save({"cpu": torch.zeros(3)}, path / "rng_state.pth")
    if complete:
        TrainerState(global_step=step, max_steps=200).save_to_json(str(path / "trainer_state.json"))
        checkpoints.mark_complete(path)
    return path
