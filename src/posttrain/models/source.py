"""Where weights come from, checked before torch is imported and before anything is downloaded."""

import json
import os
import re
from pathlib import Path

from posttrain import digests
from posttrain.errors import PosttrainError

RESTORE = f"copy it again; if the change is your own, remove {digests.MARK} there"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ADAPTER_CONFIG = "adapter_config.json"
# A vocabulary as transformers finds it: of tokenizers, SentencePiece, BERT, tiktoken, Mistral; BPE's two files below.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.txt", "*.tiktoken", "tekken.json")
LOCAL_ROOTS = ("outputs", "assets", "data")  # directories of this repository, never organisations on the hub


class ModelError(PosttrainError):
    """A model that cannot be loaded, and why."""


def check_model(
    name: str, needs_weights: bool = True, may_be_adapter: bool = True, needs_vocabulary: bool = True
) -> None:
    """Raise ModelError where `name` is neither a usable directory nor the name of a model on the hub."""
    directory = Path(name)
    if not directory.is_dir():
        if HUB_NAME.fullmatch(name) and name.split("/")[0] not in LOCAL_ROOTS:
            return
        raise ModelError(f"{name}: no such directory, and not a name on the hub (organisation/model)")
    if directory.name.startswith("checkpoint-") and not (directory / digests.MARK).is_file():
        raise ModelError(f"{name}: has no complete.json; its run was stopped while writing it")
    if (directory / ADAPTER_CONFIG).is_file():
        if not may_be_adapter:
            raise ModelError(
                f"{name}: is an adapter, training starts from whole weights; merge it into its base first: src/merge.py"
            )
        if not (directory / "adapter_model.safetensors").is_file():
            raise ModelError(f"{name}: has adapter_config.json but no adapter_model.safetensors")
        adapter_base(directory)
        check_vocabulary(directory)
        return
    if not (directory / "config.json").is_file():
        finished = " (its run is not finished)" if (directory.parent / "run.json").is_file() else ""
        raise ModelError(f"{name}: has no config.json{finished}; expected a directory that save_pretrained wrote")
    if needs_weights and not list(directory.glob("*.safetensors")):
        if list(directory.glob("*.bin")):
            raise ModelError(f"{name}: has weights as pickle (*.bin) only, which are never loaded; save as safetensors")
        raise ModelError(f"{name}: has no weights (*.safetensors); random_init: true starts from its config alone")
    if needs_vocabulary:
        check_vocabulary(directory)


def check_weights(name: str) -> None:
    """Raise DamageError where weights of a local directory are not as written; one process a machine looks."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        digests.check_matching(Path(name), ("*.safetensors",), RESTORE)


def check_vocabulary(directory: Path) -> None:
    """Raise ModelError where no file holds a vocabulary; transformers would make an empty tokenizer in silence."""
    found = any(path.stat().st_size for pattern in VOCABULARIES for path in directory.glob(pattern))
    if not found and not all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ModelError(
            f"{directory}: has no tokenizer.json, nor another file with a vocabulary (vocab.json and merges.txt, "
            f"tokenizer.model); copy the tokenizer's files from the model it was trained from"
        )


def adapter_base(directory: Path) -> str:
    """The name of an adapter's base, as its adapter_config.json says; raises ModelError where it says none."""
    path = directory / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the configuration of an adapter ({error}); copy or save it again") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path}: base_model_name_or_path: {base!r}: expected a directory or a name on the hub")
    return base


def evaluation_name(model: str) -> str:
    """A directory name for results: outputs/x/final → x, outputs/x/checkpoint-9 → x-checkpoint-9, org/m → org-m."""
    path = Path(model)
    if path.name == "final":
        return path.parent.name
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}-{path.name}"
    return path.name if path.is_dir() else model.replace("/", "-")
