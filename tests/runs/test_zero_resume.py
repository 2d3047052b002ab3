"""A run under ZeRO-2 on two processes resumes exactly, and runs no code that its checkpoint brings along."""

import shutil

import pytest
import torch
from conftest import LAUNCHER, config_copy, kill_when, launch, must, record
from test_security import Evil
from test_sft_run import arguments

from posttrain.models import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture
def zero2(tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("DeepSpeed compiles its CPU communication, and there is no C++ compiler")
    toggles = {"gradient_checkpointing": False, "attn_implementation": "varlen_sdpa"}
    return config_copy(tmp_path, "zero2", toggles, num_processes=2, use_cpu=True, mixed_precision="no")


def test_a_killed_run_under_zero_resumes_and_a_hostile_checkpoint_runs_nothing(zero2, tiny_data, tmp_path):
    small = {
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "save_steps": 4,
        "eval_steps": 4,
        "sample_generations": 0,
    }
    whole, out = tmp_path / "whole", tmp_path / "killed"
    must(launch(zero2, *arguments(tiny_data, whole, **small)))
    command = arguments(tiny_data, out, **small)
    kill_when(out / "checkpoint-4/complete.json", [*LAUNCHER[1:], zero2, *command], config=None)
    states = sorted((out / "checkpoint-4").rglob("*optim_states.pt"))
    assert states  # DeepSpeed's own files, which it unpickles

    marker, good = tmp_path / "code was run", states[0].read_bytes()
    torch.save({"optimizer_state_dict": Evil(marker)}, states[0])
    checkpoints.mark_complete(out / "checkpoint-4")
    refused = launch(zero2, *command)
    assert refused.returncode != 0 and not marker.exists()
    assert "checkpoint-4: holds what is no tensor or plain value" in refused.stderr

    if not (out / "checkpoint-4").exists():  # moved aside as damaged
        shutil.move(next(out.glob("damaged-checkpoint-4*")), out / "checkpoint-4")
    (out / "checkpoint-4" / states[0].relative_to(out / "checkpoint-4")).write_bytes(good)
    checkpoints.mark_complete(out / "checkpoint-4")
    must(launch(zero2, *command))
    assert record(out)["sessions"][-1]["resumed_from"] == "checkpoint-4"
    assert (whole / "final/model.safetensors").read_bytes() == (out / "final/model.safetensors").read_bytes()
