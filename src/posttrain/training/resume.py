"""Where a run goes on: its last whole checkpoint, and whether that already holds the run's last weights."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from posttrain.console import say
from posttrain.errors import PosttrainError
from posttrain.locks import lock
from posttrain.models import checkpoints
from posttrain.training import stopping
from posttrain.training.base_trainer import WholeRun
from posttrain.training.safe_loading import unreadable

SIGHT_SECONDS = 60  # a directory of another machine may show what is new as much later (NFS: acdirmax)
logger = logging.getLogger(__name__)


class SightError(PosttrainError):
    """A process that does not see the checkpoint from which the others go on."""


def resume_point(output_dir: Path) -> Path | None:
    """The last whole checkpoint, after newer ones that are not whole were put out of the way; one for all processes.

    The main process chooses: what another machine sees of a shared directory may be older. Raises SightError there
    where that checkpoint does not come into sight.
    """
    state, chosen = PartialState(), [None]
    if state.is_main_process:
        lock(output_dir)
        found = settle(output_dir)
        if found is None and any(output_dir.glob("damaged-checkpoint-*")):
            say(f"{output_dir}: no checkpoint is whole: the run begins at step 0")
        chosen = [found.name if found else None]
    broadcast_object_list(chosen, from_process=0)
    return output_dir / chosen[0] if chosen[0] and in_sight(output_dir / chosen[0]) else None


def in_sight(checkpoint: Path) -> bool:
    """True once this process sees a checkpoint whole; raises SightError where it does not in time."""
    deadline = time.monotonic() + SIGHT_SECONDS
    while not checkpoints.is_complete(checkpoint):
        if time.monotonic() > deadline:
            raise SightError(
                f"{checkpoint}: the run goes on from there, and this machine does not see it whole after "
                f"{SIGHT_SECONDS} s; put the output directory on a disk that all machines of the run share"
            )
        time.sleep(0.5)
    return True


def settle(output_dir: Path) -> Path | None:
    """The newest whole checkpoint, its bytes read; None where there is none.

    Newer ones are out of the way then: a half-written one is deleted, as the run was killed while writing it, and the
    trainer's state comes near the end of that; one that was whole and is damaged is moved aside.
    """
    for path in reversed(checkpoints.steps_of(output_dir).values()):
        if not (path / checkpoints.MARK).exists() and not (path / checkpoints.STATE_FILE).exists():
            logger.warning("%s: not complete, the run was stopped while writing it; removed", path)
            shutil.rmtree(path)
        elif why := checkpoints.fault(path) or unreadable(path):
            logger.warning("%s: %s; moved to %s", path, why, checkpoints.move_aside(path))
        else:
            return path
    return None


def trained_already(trainer: WholeRun, checkpoint: Path | None) -> Path | None:
    """The checkpoint whose weights are the run's last, if it was stopped between its last step and its end.

    transformers would take one step more before it looks at max_steps.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    trainer.restore_beside(checkpoint)
    stopped = trainer.ended or stopping.stopped_early(trainer.args, state.stateful_callbacks)
    if state.global_step < state.max_steps and not stopped:
        return None
    trainer.state = state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    return trainer.best_checkpoint() if best else checkpoint


def seconds_before(history: list[dict[str, Any]], checkpoint: Path | None) -> float:
    """Seconds of the steps up to the checkpoint that a session went on from, by the rates in the trainer's log history.

    Evaluation and saving in earlier sessions are not among them, nor are steps that were lost.
    """
    if checkpoint is None:
        return 0.0
    last, tokens, seconds = int(checkpoint.name.removeprefix(f"{checkpoints.PREFIX}-")), 0, 0.0
    for entry in history:
        if entry["step"] <= last and entry.get("tokens_per_second"):
            seconds += (entry["tokens_seen"] - tokens) / entry["tokens_per_second"]
            tokens = entry["tokens_seen"]
    return seconds
