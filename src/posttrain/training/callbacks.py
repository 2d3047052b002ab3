"""What a run writes while it trains: metrics.jsonl, sample generations, and trackers that never crash it."""

import json
import logging
import netrc
import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from transformers import TrainerCallback
from trl.models import unwrap_model_for_generation

from posttrain import jsonl, processes
from posttrain.console import say
from posttrain.data.prompts import render_prompt
from posttrain.digests import bytes_digest
from posttrain.lineage import METRICS_FILE
from posttrain.models.host_memory import Holes, give_back, keep_buffers
from posttrain.training.preemption import Notice

GENERATIONS_FILE = "generations.jsonl"
NOT_METRICS = ("num_input_tokens_seen", "train_tokens_per_second")  # ours: tokens_seen, tokens_per_second
MAX_SAMPLE_TOKENS = 256
logger = logging.getLogger(__name__)


def forget_after(path: Path, step: int) -> None:
    """Drop lines of steps after `step`, and a half-written last line: the resumed run writes them again.

    A damaged line loses only itself, and is counted.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # not splitlines, which also splits at U+2028; the last was cut off
    entries = sound_entries(path)
    if damaged := entries.count(None):
        say(f"{path}: {damaged} of {len(lines)} lines are damaged and left out")
    kept = [line for line, entry in zip(lines, entries, strict=True) if entry and entry["step"] <= step]
    jsonl.rewrite(path, kept)


def sound_entries(path: Path) -> list[dict[str, Any] | None]:
    """What the whole lines of such a file say, none of them cut off; None for a line that is not as it was written."""
    lines, known = path.read_bytes().split(b"\n")[:-1], jsonl.line_digests(path)
    return [entry_of(line) if known is None or bytes_digest(line) in known else None for line in lines]


def entry_of(line: bytes) -> dict[str, Any] | None:
    """A line of such a file, None where it is no JSON object with a step."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


class ContinuedFile(TrainerCallback):
    """A file of JSON objects by `step`, continuous over interruptions; the main process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            forget_after(self.path, state.global_step)

    def append(self, lines: list[dict[str, Any]]) -> None:
        jsonl.append(self.path, lines)


class MetricsFile(ContinuedFile):
    """One JSON object per logged step in `metrics.jsonl`."""

    def __init__(self, output_dir: Path, trainer_window: Any) -> None:
        super().__init__(output_dir / METRICS_FILE)
        self.window = trainer_window

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.window.open()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log wherever a checkpoint is saved: the logged loss is a mean since the last log, which a checkpoint in the
        middle would lose.
        """
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if state.is_world_process_zero and ("loss" in logs or any(name.startswith("eval_") for name in logs)):
            figures = {k: v for k, v in logs.items() if k not in NOT_METRICS}
            self.append([{"step": state.global_step, **figures}])


class GiveBack(TrainerCallback):
    """Hands back what a batch has freed, so that a run on a CPU does not grow.

    `keep`: buffers stay for the next batch, and what is handed back are holes that have grown. Otherwise all of it is,
    while gradients are held: they are of the same sizes in every step, and to fetch their pages anew costs time.
    """

    def __init__(self, keep: bool) -> None:
        self.look = Holes().look if keep else give_back
        if keep:
            keep_buffers()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.look()

    on_substep_end = on_prediction_step = on_optimizer_step


class SampleGenerations(ContinuedFile):
    """Greedy answers to a few validation prompts at every evaluation, for a person to read."""

    def __init__(self, trainer: Any, output_dir: Path, rows: list[dict[str, Any]], prompt: str) -> None:
        super().__init__(output_dir / GENERATIONS_FILE)
        self.trainer, self.rows = trainer, rows
        self.prompts = [render_prompt(prompt, row["prompt"], trainer.processing_class) for row in rows]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tokenizer = self.trainer.processing_class
        batch = tokenizer(
            self.prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(self.trainer.accelerator.device)
        # Inside Trainer.evaluate, whose time does not count as training already.
        with unwrap_model_for_generation(self.trainer.model_wrapped, self.trainer.accelerator) as model:
            training = model.training
            model.eval()
            ids = model.generate(
                **batch, max_new_tokens=MAX_SAMPLE_TOKENS, do_sample=False, repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            model.train(training)
        if state.is_world_process_zero:
            texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            asked = {"step": state.global_step}
            self.append(
                [
                    {**asked, "id": row["id"], "question": row["prompt"][-1]["content"], "completion": text}
                    for row, text in zip(self.rows, texts, strict=True)
                ]
            )


class SaveAndLeave(TrainerCallback):
    """Upon a notice to any process: a checkpoint at the next step from which a run resumes exactly, and Preempted."""

    def __init__(self, trainer: Any, notice: Notice) -> None:
        self.trainer, self.notice, self.leaves = trainer, notice, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.notice and not self.leaves:
            self.trainer.accelerator.set_trigger()
        alone = self.trainer.accelerator.num_processes == 1  # then nobody is asked, as that would wait for the GPU
        self.leaves |= bool(self.notice) if alone else self.trainer.accelerator.check_trigger()
        if self.leaves and is_whole_generation(self.trainer, state.global_step):
            control.should_save = control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.leaves:
            saved = f"checkpoint-{state.global_step} is whole"
            raise processes.Preempted(self.notice.signum or signal.SIGTERM, saved)


def is_whole_generation(trainer: Any, step: int) -> bool:
    """Whether what was generated before this step is trained on, all iterations on it included."""
    accumulated = trainer.args.gradient_accumulation_steps
    reuse = getattr(trainer.args, "steps_per_generation", None) or accumulated
    return step * accumulated % (reuse * getattr(trainer, "num_iterations", 1)) == 0


def prepare_trackers(report_to: list[str], output_dir: Path) -> None:
    """Keep trackers' files in the run, and let wandb and SwanLab work offline where nobody is logged in."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output_dir / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(output_dir))
    os.environ.setdefault("SWANLAB_LOG_DIR", str(output_dir / "swanlab"))
    os.environ.setdefault("TRACKIO_DIR", str(output_dir / "trackio"))  # local unless the recipe names a space
    if "wandb" in report_to and "WANDB_MODE" not in os.environ and not wandb_login():
        os.environ["WANDB_MODE"] = "offline"
        logger.warning("wandb: not logged in, writing to %s/wandb offline; `wandb sync` uploads it later", output_dir)
    if "swanlab" in report_to and "SWANLAB_MODE" not in os.environ and not swanlab_login():
        os.environ["SWANLAB_MODE"] = "offline"
        logger.warning("swanlab: not logged in, writing to %s/swanlab; `swanlab sync` uploads it later", output_dir)


def wandb_login() -> bool:
    """Whether a wandb key lies in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def swanlab_login() -> bool:
    """Whether a SwanLab key lies in the environment or where `swanlab login` puts it."""
    root = Path(os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab")
    return bool(os.environ.get("SWANLAB_API_KEY")) or (root / ".netrc").is_file()
