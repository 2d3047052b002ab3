"""Checkpoints that are whole: marked complete after the last byte, passed over without the mark, rotated after it."""

import json
import logging
import os
import shutil
from pathlib import Path

from posttrain import atomic

MARK = "complete.json"
PREFIX = "checkpoint"  # transformers' PREFIX_CHECKPOINT_DIR
logger = logging.getLogger(__name__)


def mark_complete(checkpoint: Path) -> None:
    """Write the mark: every file with its size, once all of them are on disk."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MARK:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
    atomic.sync_directory(checkpoint)
    atomic.write_json(checkpoint / MARK, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark is there and every file it lists still has its size."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text())
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == n for name, n in sizes.items())


def steps_of(output_dir: Path) -> dict[int, Path]:
    """Checkpoint directories by step, ascending."""
    found = {}
    for path in output_dir.glob(f"{PREFIX}-*"):
        step = path.name.removeprefix(f"{PREFIX}-")
        if step.isdecimal() and path.is_dir():
            found[int(step)] = path
    return dict(sorted(found.items()))


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    whole = [path for path in steps_of(output_dir).values() if is_complete(path)]
    return whole[-1] if whole else None


def remove_incomplete(output_dir: Path) -> None:
    """Delete checkpoints that a killed run left half-written, so that nothing ever mixes with their files."""
    for path in steps_of(output_dir).values():
        if not is_complete(path):
            logger.warning("%s: not complete, the run was stopped while writing it; removed", path)
            shutil.rmtree(path)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints and the best one. Call only after the newest is marked complete."""
    from transformers.trainer_utils import rotate_checkpoints  # seconds, which who only looks at them does not spend

    rotate_checkpoints(str(output_dir), save_total_limit=limit, best_model_checkpoint=best)
