"""Bytes that a run leaves on the disk, and those of a model that is fetched from the hub first."""

from pathlib import Path
from typing import Any

from posttrain.models.source import LOCAL_ROOTS
from posttrain.plan.memory.activations import FLOAT32
from posttrain.plan.memory.process import ADAMW_BYTES, Sizes
from posttrain.plan.shapes import Shape

HUB_BYTES = 2  # of a weight on the hub, which is bfloat16 for the models of the table


def checkpoint_bytes(sizes: Sizes) -> float:
    """A checkpoint that a run can resume from: what trained with its optimizer's state, and all weights."""
    weights = sizes.trainable * FLOAT32 if sizes.adapter else sizes.parameters * sizes.weight_value
    masters = FLOAT32 * sizes.trainable if sizes.deepspeed_half else 0
    return weights + sizes.trainable * ADAMW_BYTES * sizes.trained_bytes / FLOAT32 + masters


def final_bytes(sizes: Sizes) -> float:
    """The weights of final/."""
    return sizes.trainable * FLOAT32 if sizes.adapter else sizes.parameters * sizes.weight_value


def kept_checkpoints(values: dict[str, Any], steps: int | None) -> int:
    """How many checkpoints lie there at once: the limit, one that is written, and the best one beside them."""
    if values.get("save_strategy", "steps") == "no":
        return 0
    limit, every = values.get("save_total_limit"), values.get("save_steps", 500)
    written = 1 + (steps or 0) // int(every) if isinstance(every, int) and every >= 1 else 1
    kept = written if limit is None else min(written, int(limit)) + 1
    return max(1, kept)


def disk_parts(values: dict[str, Any], sizes: Sizes, steps: int | None) -> dict[str, float]:
    """Bytes by what they are for."""
    kept = kept_checkpoints(values, steps)
    parts = {f"{kept} checkpoints": kept * checkpoint_bytes(sizes), "final": final_bytes(sizes)}
    if is_on_the_hub(str(values.get("model_name_or_path"))):
        parts["model in the hub's cache"] = hub_bytes(sizes.shape)
    if values.get("teacher_model_name_or_path") and is_on_the_hub(str(values["teacher_model_name_or_path"])):
        parts["teacher in the hub's cache"] = sizes.frozen_copies / sizes.precision.weight * HUB_BYTES
    return {name: value for name, value in parts.items() if value}


def hub_bytes(shape: Shape) -> float:
    return float(HUB_BYTES * shape.parameters)


def is_on_the_hub(name: str) -> bool:
    return not Path(name).is_dir() and Path(name).parts[:1] not in [(root,) for root in LOCAL_ROOTS]
