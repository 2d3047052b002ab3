"""Where weights come from, checked before torch is imported and before anything is downloaded."""

import re
from pathlib import Path

from posttrain.errors import PosttrainError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LOCAL_ROOTS = ("outputs", "assets", "data")  # directories of this repository, never organisations on the hub


class ModelError(PosttrainError):
    """A model that cannot be loaded, and why."""


def check_model(name: str, needs_weights: bool = True, may_be_adapter: bool = True) -> None:
    """Raise ModelError where `name` is neither a usable directory nor the name of a model on the hub."""
    directory = Path(name)
    if not directory.is_dir():
        if HUB_NAME.fullmatch(name) and name.split("/")[0] not in LOCAL_ROOTS:
            return
        raise ModelError(f"{name}: no such directory, and not a name on the hub (organisation/model)")
    if directory.name.startswith("checkpoint-") and not (directory / "complete.json").is_file():
        raise ModelError(f"{name}: has no complete.json; its run was stopped while writing it")
    if (directory / "adapter_config.json").is_file():
        if not may_be_adapter:
            raise ModelError(
                f"{name}: is an adapter, training starts from whole weights; merge it into its base first: src/merge.py"
            )
        if not (directory / "adapter_model.safetensors").is_file():
            raise ModelError(f"{name}: has adapter_config.json but no adapter_model.safetensors")
        return
    if not (directory / "config.json").is_file():
        finished = " (its run is not finished)" if (directory.parent / "run.json").is_file() else ""
        raise ModelError(f"{name}: has no config.json{finished}; expected a directory that save_pretrained wrote")
    if needs_weights and not list(directory.glob("*.safetensors")):
        if list(directory.glob("*.bin")):
            raise ModelError(f"{name}: has weights as pickle (*.bin) only, which are never loaded; save as safetensors")
        raise ModelError(f"{name}: has no weights (*.safetensors); random_init: true starts from its config alone")


def evaluation_name(model: str) -> str:
    """A directory name for results: outputs/x/final → x, outputs/x/checkpoint-9 → x-checkpoint-9, org/m → org-m."""
    path = Path(model)
    if path.name == "final":
        return path.parent.name
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}-{path.name}"
    return path.name if path.is_dir() else model.replace("/", "-")
