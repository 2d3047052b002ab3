"""The rotary base and the longest position: part of a checkpoint's identity, recorded nowhere but in its config.

transformers 5 keeps them in `rope_parameters`; readers before it, and vLLM in places, know only a top-level
`rope_theta` and take 10000 where it is missing. So both forms are written, and a file whose forms disagree is refused.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from posttrain import atomic
from posttrain.errors import PosttrainError


class RopeError(PosttrainError):
    """A config whose two forms of the rotary base disagree."""


def rope_of(config: PretrainedConfig) -> dict[str, Any]:
    """Rotary base, type and longest position of a loaded config."""
    parameters = dict(config.rope_parameters or {})
    return {
        "rope_theta": parameters.get("rope_theta"),
        "rope_type": parameters.get("rope_type", "default"),
        "max_position_embeddings": config.max_position_embeddings,
    }


def write_both_forms(directory: Path) -> None:
    """Add the top-level `rope_theta` to a config.json of transformers 5; raises RopeError on a contradiction."""
    path = directory / "config.json"
    if not path.is_file():  # an adapter has no config of its own
        return
    config = json.loads(path.read_text())
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is None:
        return
    if config.setdefault("rope_theta", theta) != theta:
        raise RopeError(f"{path}: rope_theta is {config['rope_theta']} at the top but {theta} in rope_parameters")
    atomic.write_json(path, config)
