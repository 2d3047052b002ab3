"""A trained memory on disk: `memory.safetensors` and `memory.json`, which says for which model and bank it was made."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain import atomic, digests
from posttrain.memory.bank.cache import bank_digest, read_metadata
from posttrain.memory.layer import ExplicitMemory, MemoryConfig, MemoryFault

WEIGHTS = "memory.safetensors"
DESCRIPTION = "memory.json"
# The published state dicts: of the whole model or of its memory, under whatever the model was wrapped in.
PUBLISHED = re.compile(
    r"(?:.*\.)?(layers\.\d+\.(?:memory_gate|gated_memory_fusion|memory_norm)\..*|memory_gate\.(?:router|comparison)\..*)"
)


@dataclass(frozen=True)
class Loaded:
    """What a state dict did not have, what it had too much, and how many tensors were not of a memory."""

    missing: list[str]
    unexpected: list[str]
    others: int


def save_memory(directory: Path, memory: ExplicitMemory, description: dict[str, Any]) -> None:
    """Write the memory's weights and its description, which `description` adds to; never the frozen model."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.state_dict().items()}
    save_file(state, directory / WEIGHTS)
    atomic.write_json(directory / DESCRIPTION, {"config": asdict(memory.config), **description})


def read_description(directory: Path) -> dict[str, Any]:
    """What memory.json says; its `config` as a MemoryConfig."""
    path = directory / DESCRIPTION
    digests.check_matching(directory, (WEIGHTS, DESCRIPTION), "copy the directory again")
    try:
        description = json.loads(path.read_text())
        config = description["config"]
        description["config"] = MemoryConfig(**{**config, "layers": tuple(config["layers"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]  # a key of the file may stand in it
        raise MemoryFault(f"{path}: not the description of a memory ({reason}); expected final/ of a run") from error
    return description


def check_bank_of(description: dict[str, Any], bank: Tensor, cache: Path) -> None:
    """Raise unless the bank is the one the memory was trained with, or was made from it by changing rows."""
    trained, digest = description["bank"]["digest"], bank_digest(bank)
    metadata = read_metadata(cache)
    if digest != trained and (metadata.get("digest") != digest or trained not in metadata.get("updated_from", [])):
        raise MemoryFault(
            f"{cache}: digest {digest[:12]}…, but the memory was trained with {trained[:12]}…; its rows would mean "
            f"something else. Use {description['bank']['path']}, or change rows with data_prep/knowledge_update.py"
        )


def load_memory(directory: Path, memory: ExplicitMemory) -> None:
    """Load what `save_memory` wrote; every tensor must be there and fit."""
    try:
        state = load_file(directory / WEIGHTS)
        memory.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MemoryFault(f"{directory / WEIGHTS}: {' '.join(str(error).split())[:300]}") from error


def load_published(path: Path, memory: ExplicitMemory) -> Loaded:
    """Load a state dict (.pth) of ours or in the original's layout, as far as its names fit; raises where none does."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model_state_dict", state)
        matches = {name: PUBLISHED.fullmatch(str(name)) for name in state}
        ours = {match.group(1): state[name] for name, match in matches.items() if match}
        found = memory.load_state_dict(ours, strict=False)
    except Exception as error:  # whatever a damaged file, or one of other content, leads torch to
        raise MemoryFault(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if len(found.missing_keys) == len(memory.state_dict()):
        raise MemoryFault(f"{path}: holds no tensor of this memory; expected names like layers.0.memory_norm.weight")
    return Loaded(found.missing_keys, found.unexpected_keys, len(state) - len(ours))


def save_pth(path: Path, memory: ExplicitMemory) -> None:
    """Write the memory as a state dict of tensors, for readers of `sft_latest.pth`."""
    with atomic.writing(path) as file:
        torch.save({name: tensor.detach().cpu() for name, tensor in memory.state_dict().items()}, file)
