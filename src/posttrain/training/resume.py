"""Where a run goes on: its last whole checkpoint, and whether that already holds the run's last weights."""

from pathlib import Path

from accelerate import PartialState
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from posttrain.locks import lock
from posttrain.models import checkpoints
from posttrain.training import stopping
from posttrain.training.base_trainer import WholeRun


def resume_point(output_dir: Path) -> Path | None:
    """The last whole checkpoint, after half-written ones were removed; the same on every process."""
    state = PartialState()
    if state.is_main_process:
        lock(output_dir)
        checkpoints.remove_incomplete(output_dir)
    state.wait_for_everyone()
    return checkpoints.last_complete(output_dir)


def trained_already(trainer: WholeRun, checkpoint: Path | None) -> Path | None:
    """The checkpoint whose weights are the run's last, if it was stopped between its last step and its end.

    transformers would take one step more before it looks at max_steps.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps and not stopping.stopped_early(trainer.args, state.stateful_callbacks):
        return None
    trainer.state = state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    return Path(best) if best else checkpoint
