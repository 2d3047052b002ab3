"""One run of a recipe: it claims its directory, trains from the last whole checkpoint, and closes its record."""

import dataclasses
import json
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import ModelConfig

from posttrain import jsonl, lineage, locks, processes
from posttrain.console import is_main_process, say
from posttrain.data.encode import load_tokenizer
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.launching import SHARDED, LaunchError, meet, whereabouts
from posttrain.models import trainable
from posttrain.models.loading import read_config
from posttrain.models.rope import base_rope, rope_of
from posttrain.plan.measured import MEMORY, beside, more_than_planned
from posttrain.plan.page import verdict
from posttrain.plan.recipe_plan import Plan
from posttrain.plan.start import plan_start
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training import preemption, stopping
from posttrain.training.base_trainer import WholeRun, peak_memory_bytes
from posttrain.training.callbacks import SaveAndLeave
from posttrain.training.final import FINAL, restore_final, save_final
from posttrain.training.progress import data_line
from posttrain.training.resume import resume_point, seconds_before, trained_already

NOT_IDENTITY = (  # move no number
    "ddp_timeout", "grace", "output_dir", "report_to", "run_name", "project", "disable_tqdm", "log_level",
    "probe", "probe_max_truncated", "probe_max_zero_variance", "plan",
)  # fmt: skip
EVALUATION_SPEED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def run_arguments(recipe: Recipe, hardware: Hardware, config_class: type[Arguments], **ours: Any) -> Arguments:
    """TRL's arguments: the recipe's keys, from the accelerate config what belongs to the machine, and `ours`."""
    # TRL's default is on, and its field of the older name is the only one that turns it off; TRL reads it as well.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
    options = recipe.build(StrategyOptions)
    stopping.check_callbacks(options)
    meet(recipe.values.get("ddp_timeout", config_class.ddp_timeout), hardware.use_cpu)
    ours = {**stopping.resume_arguments(options), **ours}
    return recipe.build(
        config_class,
        bf16=hardware.mixed_precision == "bf16",
        fp16=hardware.mixed_precision == "fp16",
        gradient_checkpointing=hardware.gradient_checkpointing,
        use_cpu=hardware.use_cpu,
        **ours,
    )


class Run:
    """A recipe's run in its output directory, from the claim on it to the record that calls it finished."""

    def __init__(
        self, recipe: Recipe, options: Any, hardware: Hardware, manifest: dict[str, Any], **inputs: Any
    ) -> None:
        """Claim the directory; `inputs` identifies the run beside recipe, dataset, model and machine.

        Raises LineageError where another run lives there.
        """
        self.recipe, self.options, self.hardware, self.manifest = recipe, options, hardware, manifest
        self.output_dir = Path(recipe.values["output_dir"])
        self.identity = {**run_identity(recipe, manifest, hardware), **inputs}
        self.record = lineage.claim(self.output_dir, self.identity)
        self.trained: Path | None = None  # the checkpoint that holds the last weights, where no step was left to take
        say(f"{recipe.values['trainer']} {recipe.path} → {self.output_dir}")
        self.plan: Plan | str = ""  # or why there is none
        mode = recipe.build(StrategyOptions).plan
        if mode != "off" and not (self.record and self.record["finished"]):
            self.plan = plan_start(recipe.values, hardware, mode, recipe.path)

    def is_finished(self) -> bool:
        """Whether an earlier session finished this run, which is told; `final/` is restored where it was lost."""
        if not self.record or not self.record["finished"]:
            return False
        if is_main_process():
            restore_final(self.output_dir, self.record)
        say(f"{self.output_dir}: this run finished at {self.record['finished']}; nothing to do")
        return True

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with the recipe's end token."""
        values = self.recipe.values
        return load_tokenizer(values["model_name_or_path"], values.get("model_revision"), values.get("eos_token"))

    def describe(self, rows: Any) -> dict[str, Any]:
        """What run.json says of a prepared dataset and of what became of its rows."""
        return {
            "path": self.options.dataset_name,
            "manifest": lineage.digest(self.manifest),
            "source": self.manifest["source"],
            "used": rows.used,
            "dropped_too_long": rows.dropped_too_long,
        }

    def train(
        self, trainer: WholeRun, dataset: dict[str, Any], callbacks: Sequence[Any] = (), **details: Any
    ) -> dict[str, Any]:
        """Train from the last whole checkpoint or the start; returns what was reached.

        `dataset` is what became of the rows, `details` what run.json says beside. Raises PosttrainError where no step
        was taken, so that such a run is never called finished.
        """
        check_sharding(trainer)
        stopping.add_callbacks(trainer, self.recipe.build(StrategyOptions), callbacks)
        resumed_from = resume_point(self.output_dir)
        details = run_details(self, trainer, dataset) | details
        model = f"{self.recipe.values['model_name_or_path']}, {trainable.parameter_report(details['parameters'])}"
        planned = verdict(self.plan) if isinstance(self.plan, Plan) else self.plan
        trainer.facts = {"model": model, "data": data_line(dataset), "plan": planned}
        self.record = start_or_continue(self, details, resumed_from)
        locks.describe(self.output_dir, whereabouts())
        started, self.trained = time.perf_counter(), trained_already(trainer, resumed_from)
        if self.trained is None:
            with self.leaving_when_asked(trainer):
                trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
        if trainer.state.global_step == 0:
            raise PosttrainError(f"{self.output_dir}: {no_step_reason(trainer)}; the run is not finished")
        before = seconds_before(trainer.state.log_history, resumed_from)
        return run_result(trainer, before + time.perf_counter() - started)

    @contextmanager
    def leaving_when_asked(self, trainer: WholeRun) -> Iterator[None]:
        """Inside, a first SIGTERM ends the run with a whole checkpoint and exit code 75; the record says why."""
        try:
            with preemption.grace(self.recipe.build(StrategyOptions).grace) as notice:
                trainer.add_callback(SaveAndLeave(trainer, notice))
                yield
        except processes.Preempted as left:
            if is_main_process():
                ended = {"at": lineage.now(), "signal": Signals(left.signum).name, "step": trainer.state.global_step}
                self.record["sessions"][-1] |= {"ended": ended}
                jsonl.write_sealed(self.output_dir / lineage.RUN_FILE, self.record)
            raise
        except PosttrainError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError) and is_main_process():
                self.record["sessions"][-1] |= {"ended": {"at": lineage.now(), "reason": MEMORY}}
                jsonl.write_sealed(self.output_dir / lineage.RUN_FILE, self.record)
            raise

    def close(self, trainer: WholeRun, result: dict[str, Any]) -> None:
        """Write `final/`, then the record that says the run is finished."""
        save_final(trainer, self.output_dir, self.record, result, self.trained)
        if (plan := (self.record or {}).get("plan")) and more_than_planned(plan, result):
            say("; ".join(beside(plan, result)))

    def summary(self, result: dict[str, Any], figure: str | None = None) -> str:
        """The last line of a run, with one figure of its last evaluation."""
        held_out = result["evaluation"].get(f"eval_{figure}")
        parts = [f"{result['steps']} steps", f"{result['tokens_seen']} tokens"]
        parts += [f"loss {result['first_loss']} → {result['last_loss']}"] if result["first_loss"] is not None else []
        parts += [f"held-out {figure} {held_out:.3f}"] if held_out is not None else []
        return f"{self.output_dir / FINAL}: {', '.join(parts)}, {result['wall_seconds']:.0f} s"


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


def run_details(run: Run, trainer: WholeRun, dataset: dict[str, Any]) -> dict[str, Any]:
    """What run.json says beside the identity."""
    recipe, options = run.recipe, run.options
    model_config = recipe.build(ModelConfig)
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    model = trainable.describe_model(unwrapped, model_config)
    untrained = read_config(str(model_config.model_name_or_path), model_config.model_revision)
    own = base_rope(str(model_config.model_name_or_path), rope_of(untrained.get_text_config()))
    resolved = {**trainer.args.to_dict(), **dataclasses.asdict(model_config), **dataclasses.asdict(options)}
    return {
        "recipe": {"path": recipe.path, "sha256": recipe.sha256, "text": recipe.text},
        "arguments": json.loads(json.dumps(resolved, default=str)),  # enumerations and paths as text
        "accelerate": run.hardware.as_record(),
        "hardware": lineage.machine(),
        "inputs": {"dataset": dataset, "model": model},
        "rope": {"base": own, "trained": model["rope"]},
        "prompt": options.prompt,
        "eos_token": trainer.processing_class.eos_token if getattr(options, "append_eos", True) else None,
        "parameters": trainable.parameter_counts(unwrapped),
        "plan": run.plan.as_record() if isinstance(run.plan, Plan) else None,
    }


def start_or_continue(run: Run, details: dict[str, Any], resumed_from: Path | None) -> dict[str, Any]:
    """The record of this run with a new session in it, written to run.json by the main process."""
    output_dir, record = run.output_dir, run.record
    if PartialState().is_main_process and lineage.read_record(output_dir) != record:
        raise lineage.LineageError(f"{output_dir}: another process wrote there meanwhile; start the command again")
    session = {"started": lineage.now(), "resumed_from": resumed_from.name if resumed_from else None}
    if not PartialState().is_main_process:
        return record or details
    if record is None:
        return lineage.start_record(output_dir, run.identity, {**details, "sessions": [session]})
    record["sessions"].append(session)
    record.pop("files", None)  # of a record that was opened again by hand
    jsonl.write_sealed(output_dir / lineage.RUN_FILE, record)
    return record


def no_step_reason(trainer: WholeRun) -> str:
    """Why training ended before its first step, with the numbers that decide it."""
    rows, batches, args = len(trainer.train_dataset), len(trainer.get_train_dataloader()), trainer.args
    if batches:
        return f"no step was taken of {trainer.state.max_steps}: a callback stopped the run before the first"
    return (
        f"no step was taken: {rows} rows fill no batch (per_device_train_batch_size {args.per_device_train_batch_size} "
        f"× {args.world_size} processes, dataloader_drop_last {str(args.dataloader_drop_last).lower()}); lower "
        f"the batch or add rows"
    )


def run_result(trainer: WholeRun, seconds: float) -> dict[str, Any]:
    """What a trained run reached. `seconds` are of all sessions, the rate is the median of all windows."""
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
        "evaluation": last_evaluation(trainer),
        "peak_memory_bytes": peak_memory_bytes(),
        "effective": effective_settings(trainer),
        "exit_reason": trainer.ended
        or ("completed" if state.global_step >= state.max_steps else "stopped by a callback"),
    }


def last_evaluation(trainer: WholeRun) -> dict[str, float]:
    """Figures of the last evaluation but those of its speed; empty where the recipe evaluates nothing."""
    lines = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    figures = lines[-1] if lines else {}
    return {k: v for k, v in figures.items() if k.startswith("eval_") and k not in EVALUATION_SPEED}


def check_sharding(trainer: WholeRun) -> None:
    """Raise LaunchError where the environment asks for sharding that accelerate does not do, as FSDP without GPUs."""
    asked = next((kind for kind, variable in SHARDED.items() if os.environ.get(variable) == "true"), None)
    in_force = trainer.accelerator.distributed_type
    if asked and in_force != asked:
        raise LaunchError(
            f"the accelerate config asks for distributed_type: {asked}, and accelerate runs {in_force.value} on "
            f"{trainer.accelerator.device}: every process would hold the whole model; use GPUs or another config"
        )


def sharding(trainer: WholeRun) -> str:
    """What is sharded over processes, read from the model that trained: none, ddp, fsdp, zero1, zero2 or zero3."""
    wrapped = trainer.model_wrapped
    if hasattr(wrapped, "zero_optimization_stage"):
        return f"zero{wrapped.zero_optimization_stage()}"
    if any(isinstance(parameter, DTensor) for parameter in wrapped.parameters()):
        return "fsdp"
    return "ddp" if isinstance(wrapped, DistributedDataParallel) else "none"


def effective_settings(trainer: WholeRun) -> dict[str, Any]:
    """What was in force while training, read from the model itself; the trainer applies some of it only then."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "gradient_checkpointing": bool(model.is_activation_checkpointing),
        "attn_implementation": model.config._attn_implementation,
        "weights_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "autocast": trainer.accelerator.mixed_precision,
        "sharding": sharding(trainer),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
