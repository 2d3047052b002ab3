"""Checkpoints that are whole: marked after the last byte, held against the mark, rotated as the recipe asks.

What was once whole is never deleted otherwise: a checkpoint that is damaged is moved aside.
"""

import logging
from pathlib import Path

from posttrain import digests
from posttrain.digests import MARK as MARK
from posttrain.digests import DamageError

PREFIX = "checkpoint"  # transformers' PREFIX_CHECKPOINT_DIR
STATE_FILE = "trainer_state.json"  # transformers' TRAINER_STATE_NAME
OPTIMIZER = ("optimizer", "global_step")  # a name begins so: of one file or of shards, and of DeepSpeed
logger = logging.getLogger(__name__)


def mark_complete(checkpoint: Path) -> None:
    """Write the mark: every file with its size and digest, once all of them are on disk."""
    digests.write_mark(checkpoint)


def is_complete(directory: Path) -> bool:
    """Whether the mark is there and every file it lists still has its size; no file is read."""
    return fault(directory, sizes_only=True) is None


def fault(directory: Path, sizes_only: bool = False) -> str | None:
    """Why a checkpoint or `final/` is not whole, or None; unless `sizes_only`, its bytes are read."""
    try:
        stamps = digests.read_mark(directory)
    except DamageError as error:
        return str(error)
    if stamps is None:
        return f"not complete, it has no {MARK}"
    if directory.name.startswith(f"{PREFIX}-"):
        listed = {"the trainer's state": STATE_FILE in stamps}
        listed["an optimizer"] = any(name.startswith(OPTIMIZER) for name in stamps)
        if missing := [what for what, there in listed.items() if not there]:
            return f"not complete, its {MARK} lists no {' and no '.join(missing)}"
    for name, stamped in stamps.items():
        if found := digests.difference(directory / name, stamped, sizes_only):
            return f"{name} {found}"
    if not sizes_only and not all(digests.ALGORITHM in stamped for stamped in stamps.values()):
        logger.warning("%s: of an earlier version: its mark holds sizes alone, so its bytes are not checked", directory)
    return None


def steps_of(output_dir: Path) -> dict[int, Path]:
    """Checkpoint directories by step, ascending."""
    found = {}
    for path in output_dir.glob(f"{PREFIX}-*"):
        step = path.name.removeprefix(f"{PREFIX}-")
        if step.isdecimal() and path.is_dir():
            found[int(step)] = path
    return dict(sorted(found.items()))


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint by its mark and sizes, or None."""
    whole = [path for path in steps_of(output_dir).values() if is_complete(path)]
    return whole[-1] if whole else None


def move_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint a name that neither resuming nor rotation knows, and return it."""
    names = (f"damaged-{checkpoint.name}" + (f"-{n}" if n else "") for n in range(10**6))
    aside = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    return checkpoint.rename(aside)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints and the best one. Call only after the newest is marked complete."""
    from transformers.trainer_utils import rotate_checkpoints  # seconds, which who only looks at them does not spend

    rotate_checkpoints(str(output_dir), save_total_limit=limit, best_model_checkpoint=best)
