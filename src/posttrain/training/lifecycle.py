"""What every training script shares: arguments, tokenizer, model, resuming, and the final checkpoint."""

import dataclasses
import json
import logging
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoConfig, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOConfig, ModelConfig, SFTConfig

from posttrain import atomic, lineage
from posttrain.data.encode import load_tokenizer as load_tokenizer  # light scripts take it from there
from posttrain.hardware import Hardware
from posttrain.locks import lock
from posttrain.models import checkpoints, trainable
from posttrain.models.rope import base_rope, rope_of, write_both_forms
from posttrain.models.trainable import describe_model
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training import stopping
from posttrain.training.base_trainer import CheckpointError, WholeRun, peak_memory_bytes


def train_to_the_end(
    trainer: WholeRun, recipe: Recipe, options: Any, hardware: Hardware, dataset: dict[str, Any],
    identity: dict[str, Any], record: dict[str, Any] | None, callbacks: Sequence[Any] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train from the last whole checkpoint or the start, then write `final/` and the record that says it is whole.

    Returns the result, with the last evaluation's figures under `evaluation`.
    """
    stopping.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)
    output_dir = Path(trainer.args.output_dir)
    resumed_from = resume_point(output_dir)
    details = run_details(recipe, hardware, trainer, options, dataset)
    details["eos_token"] = trainer.processing_class.eos_token
    tell(trainable.parameter_report(details["parameters"]))
    record = start_or_continue(output_dir, record, identity, details, resumed_from)
    started = time.perf_counter()
    trained = trained_already(trainer, resumed_from)
    if trained is None:
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    result = run_result(trainer, time.perf_counter() - started)
    result["evaluation"] = last_evaluation(trainer)
    save_final(trainer, output_dir, record, result, trained)
    return result


def last_evaluation(trainer: WholeRun) -> dict[str, float]:
    """Figures of the last evaluation but those of its speed; empty where the recipe evaluates nothing."""
    lines = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    speed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return {k: v for k, v in lines[-1].items() if k.startswith("eval_") and k not in speed} if lines else {}


def summary(output_dir: Path, result: dict[str, Any], figure: str) -> str:
    """The last line of a run, with one figure of its last evaluation."""
    held_out = result["evaluation"].get(f"eval_{figure}")
    evaluated = f"held-out {figure} {held_out:.3f}, " if held_out is not None else ""
    losses = f"loss {result['first_loss']} → {result['last_loss']}, " if result["first_loss"] is not None else ""
    return f"{output_dir / FINAL}: {result['steps']} steps, {losses}{evaluated}{result['wall_seconds']:.0f} s"


FINAL = "final"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # of a checkpoint, beside the trainer's own
NOT_IDENTITY = (  # move no number
    "output_dir", "report_to", "run_name", "project", "disable_tqdm", "log_level",
    "probe", "probe_max_truncated", "probe_max_zero_variance",
)  # fmt: skip
Arguments = TypeVar("Arguments", SFTConfig, GRPOConfig)
logger = logging.getLogger(__name__)


def tell(line: str) -> None:
    """Print a line once, however many processes run."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def build_arguments(recipe: Recipe, hardware: Hardware, config_class: type[Arguments], **ours: Any) -> Arguments:
    """TRL's arguments: the recipe's keys, from the accelerate config what belongs to the machine, and `ours`."""
    # TRL's default is on, and its field of the older name is the only one that turns it off; TRL reads it as well.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
    options = recipe.build(StrategyOptions)
    stopping.check_callbacks(options)
    ours = {**stopping.resume_arguments(options), **ours}
    return recipe.build(
        config_class,
        bf16=hardware.mixed_precision == "bf16",
        fp16=hardware.mixed_precision == "fp16",
        gradient_checkpointing=hardware.gradient_checkpointing,
        use_cpu=hardware.use_cpu,
        **ours,
    )


def run_identity(recipe: Recipe, manifest: dict[str, Any], hardware: Hardware) -> dict[str, Any]:
    """Everything that decides the run's numbers; two runs of equal identity are one run."""
    return {
        **{key: value for key, value in recipe.values.items() if key not in NOT_IDENTITY},
        "dataset_files": lineage.digest(manifest["files"]),
        "model_files": lineage.fingerprint(recipe.values["model_name_or_path"]),
        "num_processes": hardware.num_processes,
        "mixed_precision": hardware.mixed_precision,
        "attn_implementation": hardware.attn_implementation,
    }


def run_details(
    recipe: Recipe, hardware: Hardware, trainer: WholeRun, options: Any, dataset: dict[str, Any]
) -> dict[str, Any]:
    """What run.json says beside the identity. `dataset` is what became of the rows, `options` our own keys."""
    model_config = recipe.build(ModelConfig)
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    model = describe_model(unwrapped, model_config)
    untrained = AutoConfig.from_pretrained(model_config.model_name_or_path, revision=model_config.model_revision)
    own = base_rope(str(model_config.model_name_or_path), rope_of(untrained.get_text_config()))
    resolved = {**trainer.args.to_dict(), **dataclasses.asdict(model_config), **dataclasses.asdict(options)}
    return {
        "recipe": {"path": recipe.path, "sha256": recipe.sha256, "text": recipe.text},
        "arguments": plain(resolved),
        "accelerate": hardware.as_record(),
        "hardware": lineage.machine(),
        "inputs": {"dataset": dataset, "model": model},
        "rope": {"base": own, "trained": model["rope"]},
        "prompt": options.prompt,
        "parameters": trainable.parameter_counts(unwrapped),
    }


def resume_point(output_dir: Path) -> Path | None:
    """The last whole checkpoint, after half-written ones were removed; the same on every process."""
    state = PartialState()
    if state.is_main_process:
        lock(output_dir)
        checkpoints.remove_incomplete(output_dir)
    state.wait_for_everyone()
    return checkpoints.last_complete(output_dir)


def effective_settings(trainer: WholeRun) -> dict[str, Any]:
    """What was in force while training, read from the model itself; the trainer applies some of it only then."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "gradient_checkpointing": bool(model.is_activation_checkpointing),
        "attn_implementation": model.config._attn_implementation,
        "weights_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "autocast": trainer.accelerator.mixed_precision,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def start_or_continue(
    output_dir: Path,
    record: dict[str, Any] | None,
    identity: dict[str, Any],
    details: dict[str, Any],
    resumed_from: Path | None,
) -> dict[str, Any]:
    """The record of this run with a new session in it, written to run.json by the main process."""
    if PartialState().is_main_process and lineage.read_json(output_dir / lineage.RUN_FILE) != record:
        raise lineage.LineageError(f"{output_dir}: another process wrote there meanwhile; start the command again")
    session = {"started": lineage.now(), "resumed_from": resumed_from.name if resumed_from else None}
    if not PartialState().is_main_process:
        return record or details
    if record is None:
        record = lineage.start_record(output_dir, identity, {**details, "sessions": [session]})
    else:
        record["sessions"].append(session)
        atomic.write_json(output_dir / lineage.RUN_FILE, record)
    return record


def run_result(trainer: WholeRun, seconds: float) -> dict[str, Any]:
    """What the finished run reached. `wall_seconds` are of the last session, the rate is the median of all windows."""
    state = trainer.state
    rates = [entry["tokens_per_second"] for entry in state.log_history if "tokens_per_second" in entry]
    losses = [round(entry["loss"], 4) for entry in state.log_history if "loss" in entry]
    return {
        "steps": state.global_step,
        "epochs": state.epoch,
        "tokens_seen": state.num_input_tokens_seen,
        "tokens_per_second": statistics.median(rates) if rates else None,
        "wall_seconds": round(seconds, 2),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_metric": state.best_metric,
        "best_checkpoint": Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "effective": effective_settings(trainer),
        "exit_reason": "completed" if state.global_step >= state.max_steps else "stopped by a callback",
    }


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


def save_final(
    trainer: WholeRun,
    output_dir: Path,
    record: dict[str, Any],
    result: dict[str, Any],
    trained: Path | None = None,
) -> None:
    """Write `final/` whole, then close run.json. Every process calls this, as sharded weights are gathered.

    `trained` is a checkpoint that already holds the run's last weights; without it the trainer's are saved.
    """
    try:
        _save_final(trainer, output_dir, record, result, trained)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{output_dir / FINAL}: could not be written ({error}); free space and start the command again"
        ) from error


def _save_final(
    trainer: WholeRun, output_dir: Path, record: dict[str, Any], result: dict[str, Any], trained: Path | None
) -> None:
    final, unfinished = output_dir / FINAL, output_dir / f".{FINAL}.unfinished"
    if trainer.accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if trained is None:
        trainer.save_model(str(unfinished))
    elif trainer.accelerator.is_main_process:
        unfinished.mkdir()
        for path in [p for pattern in MODEL_FILES for p in trained.glob(pattern)]:
            if path.name not in (TRAINER_STATE_NAME, checkpoints.MARK):
                shutil.copy2(path, unfinished)
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return
    (unfinished / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in text
    write_both_forms(unfinished)
    closed = {**record, "result": result, "finished": lineage.now()}
    atomic.write_json(unfinished / lineage.LINEAGE_FILE, closed)
    checkpoints.mark_complete(unfinished)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    atomic.write_json(output_dir / lineage.RUN_FILE, closed)


def plain(value: Any) -> Any:
    """A JSON form of resolved arguments: enumerations and paths as text."""
    return json.loads(json.dumps(value, default=str))
