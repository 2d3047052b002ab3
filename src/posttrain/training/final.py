"""`final/`: the run's last weights, written whole before the record calls the run finished, and restored if lost."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from posttrain import digests, jsonl, lineage
from posttrain.console import say
from posttrain.locks import lock
from posttrain.models import checkpoints, run_card
from posttrain.models.rope import write_both_forms
from posttrain.training.base_trainer import CheckpointError, WholeRun

FINAL = "final"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # of a checkpoint, beside the trainer's own


def save_final(
    trainer: WholeRun, output_dir: Path, record: dict[str, Any], result: dict[str, Any], trained: Path | None = None
) -> None:
    """Write `final/` whole, then close run.json. Every process calls this, as sharded weights are gathered.

    `trained` is a checkpoint that already holds the run's last weights; without it the trainer's are saved.
    """
    unfinished = output_dir / f".{FINAL}.unfinished"
    try:
        if trainer.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        if trained is None:
            trainer.save_model(str(unfinished))
        elif trainer.accelerator.is_main_process:
            copy_model(trained, unfinished)
        trainer.accelerator.wait_for_everyone()
        if trainer.accelerator.is_main_process:
            closed = lineage.closed(output_dir, record, result)
            publish(unfinished, output_dir / FINAL, closed)
            lineage.write_closed(output_dir, closed)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{output_dir / FINAL}: could not be written ({error}); free space and start the command again"
        ) from error


def restore_final(output_dir: Path, record: dict[str, Any]) -> None:
    """Give a finished run its `final/` back where it is gone or damaged, from the checkpoint of its last weights.

    A damaged one is moved aside. Raises CheckpointError where no whole checkpoint holds these weights.
    """
    final = output_dir / FINAL
    if checkpoints.is_complete(final):
        return
    lock(output_dir)
    state = "is gone" if not final.exists() else "is damaged (a file is missing, or has another size)"
    source = output_dir / last_weights(record)
    if not checkpoints.is_complete(source) or not any(source.glob("*.safetensors")):
        raise CheckpointError(
            f"{final}: {state}, and {source} with the same weights is no longer there to restore it from; put a copy "
            f"of final/ back, or remove {output_dir} and start the command again, which trains anew"
        )
    unfinished = output_dir / f".{FINAL}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    copy_model(source, unfinished)
    aside = None
    if final.exists():
        aside = next(p for n in range(1, 10**6) if not (p := output_dir / f"{FINAL}.damaged-{n}").exists())
        final.rename(aside)
    publish(unfinished, final, record)
    say(f"{final}: {state}; restored from {source.name}" + (f", the damaged one is now {aside}" if aside else ""))


def last_weights(record: dict[str, Any]) -> str:
    """Name of the checkpoint with the weights that a finished run left in `final/`."""
    result, best = record["result"], record["arguments"].get("load_best_model_at_end")
    return (best and result["best_checkpoint"]) or f"checkpoint-{result['steps']}"


def copy_model(checkpoint: Path, directory: Path) -> None:
    """Copy the model's files of a checkpoint, without those that only the trainer reads."""
    digests.check_matching(checkpoint, MODEL_FILES, "restore it, or remove the checkpoint and start the command again")
    directory.mkdir()
    for path in [p for pattern in MODEL_FILES for p in checkpoint.glob(pattern)]:
        if path.name not in (TRAINER_STATE_NAME, checkpoints.MARK):
            shutil.copy2(path, directory)


def publish(unfinished: Path, final: Path, closed: dict[str, Any]) -> None:
    """Put the record into a written directory, mark it whole, give it its name, and write its card."""
    (unfinished / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in text
    (unfinished / "README.md").unlink(missing_ok=True)  # peft's; the run card takes its place, outside the mark
    write_both_forms(unfinished)
    jsonl.write_sealed(unfinished / lineage.LINEAGE_FILE, closed)
    checkpoints.mark_complete(unfinished)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    run_card.update(final)
