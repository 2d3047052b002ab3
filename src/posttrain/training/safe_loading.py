"""What lies in a checkpoint is never run: tensors and plain values alone are unpickled."""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from posttrain import jsonl
from posttrain.digests import DamageError
from posttrain.models.checkpoints import STATE_FILE

STATE = {"global_step": int, "max_steps": int, "log_history": [dict], "stateful_callbacks": {str: (dict, [dict])}}
SMALL_PICKLES = ("rng_state*.pth", "scheduler.pt", "scaler.pt")
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def unreadable(checkpoint: Path) -> str | None:
    """Which of the trainer's small files cannot be read, or hold what is no value; None where all are good."""
    try:
        jsonl.read_object(checkpoint / STATE_FILE, STATE, "go on from an earlier one")
        TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    except (DamageError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{STATE_FILE} cannot be read ({error})"
    for path in [path for pattern in SMALL_PICKLES for path in sorted(checkpoint.glob(pattern))]:
        try:
            with tensors_only(), safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the bytes lead the unpickler to
            return f"{path.name} cannot be read ({' '.join(str(error).split())[:120]})"
    return next((f"{path} {why}" for path in checkpoint.rglob(".metadata") if (why := metadata_fault(path))), None)


class MetadataUnpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, which torch unpickles as it is; finds nothing but its own classes."""

    NAMES = frozenset({
        ("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        own = module == metadata.__name__ and isinstance(getattr(metadata, name, None), type)
        storage = module == "torch.distributed.checkpoint.filesystem" and name in ("_StorageInfo", "_StoragePrefix")
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (own or storage or dtype or (module, name) in self.NAMES):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's index")
        return super().find_class(module, name)


def metadata_fault(path: Path) -> str | None:
    """What is wrong with the index of a sharded checkpoint, or None."""
    try:
        with path.open("rb") as file:
            MetadataUnpickler(file).load()
    except Exception as error:  # whatever the bytes lead the unpickler to
        return f"cannot be read ({' '.join(str(error).split())[:120]})"
    return None


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside the block torch.load makes tensors and plain values alone, whatever its caller asks for.

    DeepSpeed asks for everything, and would run what a checkpoint holds. This is torch's own switch; DeepSpeed's three
    classes of values are let through.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(deepspeed_values()):
            yield
    finally:
        os.environ.pop(FORCE, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def deepspeed_values() -> list[Any]:
    """The classes in DeepSpeed's checkpoints; none where DeepSpeed does not run."""
    if "deepspeed" not in sys.modules:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
