"""What our trainers add to TRL's: checkpoints that are whole, honest throughput, a loss that is fast without Triton."""

import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import Trainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import adjusted_mfu, compute_flops_per_token, compute_mfu, get_peak_flops

from posttrain.console import Progress
from posttrain.errors import PosttrainError
from posttrain.generation.sample import Decoding, Sample
from posttrain.generation.samplers import HfSampler
from posttrain.hardware import find_config
from posttrain.models import checkpoints
from posttrain.models.host_memory import peak_resident_bytes
from posttrain.models.rope import write_both_forms
from posttrain.plan.memory.advice import advice
from posttrain.plan.memory.live import sizes_of
from posttrain.plan.memory.process import GIB
from posttrain.plan.shapes import ShapeError
from posttrain.training.callbacks import GiveBack
from posttrain.training.progress import Opening, show_progress
from posttrain.training.safe_loading import tensors_only


class CheckpointError(PosttrainError):
    """A checkpoint that could not be written; the last whole one is still there."""


class WholeRun(Trainer):
    """A mixin before a trainer of TRL: whole checkpoints, and figures of which each has one name.

    `self._metrics` is TRL's own store of figures to be logged.
    """

    keeps_buffers = True  # of a batch for the next, on a CPU
    ended: str | None = None  # why the method itself ended the run before its last step

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = Window(self)
        self.facts: dict[str, str] = {}  # lines of the header that only the run knows
        self.add_callback(Opening(self))
        if self.accelerator.device.type == "cpu":
            self.add_callback(GiveBack(self.keeps_buffers))
        show_progress(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen, tokens per second, MFU and memory to TRL's figures; each of them under one name."""
        self._metrics["train"].pop("num_tokens", None)  # starts at zero again on resume; tokens_seen does not
        self._metrics["eval"].pop("num_tokens", None)
        if "loss" in logs:
            logs |= self.window.close()
        super().log(logs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; where CUDA runs out of memory, raise PosttrainError with the settings that would save most of it."""
        try:
            with tensors_only():
                return super().train(*args, **kwargs)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{kwargs.get('resume_from_checkpoint')}: holds what is no tensor or plain value, and could run code, "
                f"so it is not loaded ({' '.join(str(error).split())[:200]}); move the checkpoint away and start the "
                f"command again, which goes on from the one before"
            ) from error
        except torch.OutOfMemoryError as error:
            device = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
            config = (find_config() or Path("accelerate_configs/….yaml")).name
            try:
                text = advice(sizes_of(self), config, device)
            except ShapeError as unknown:
                text = f"CUDA is out of memory ({unknown})"
            raise PosttrainError(f"{text}\n       {' '.join(str(error).split())[:200]}") from error

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.window.paused():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The model with its whole weights in evaluation mode, and as it was afterwards."""
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            training = model.training
            model.eval()
            try:
                yield model
            finally:
                model.train(training)

    def complete(self, prompts: Sequence[list[int]], decoding: Decoding) -> list[Sample]:
        """One completion per prompt with the current weights, in order; processes share the work, and all get all."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = range(rank, len(prompts), world)
        with self.generating() as model:
            sampler = HfSampler(model, self.processing_class, self.args.per_device_eval_batch_size)
            progress = Progress("answering", "prompts", len(mine), plain=self.args.disable_tqdm)
            asked = [prompts[i] for i in mine]
            samples = list(progress.over(sampler.sample(asked, decoding, tick=progress.count)))
        placed = [replace(sample, index=mine[sample.index]) for sample in samples]
        return sorted(gather_object(placed), key=lambda sample: sample.index)

    def best_checkpoint(self) -> Path:
        """The checkpoint of the best evaluation, its weights as they were written; raises CheckpointError."""
        best = Path(str(self.state.best_model_checkpoint))
        if not best.is_dir():  # the run's directory was moved meanwhile
            best = Path(self.args.output_dir) / best.name
        if why := checkpoints.fault(best) if self.accelerator.is_main_process else None:
            raise CheckpointError(
                f"{best}: {why}: it has the best evaluation, which load_best_model_at_end takes; restore it, or remove "
                f"{self.args.output_dir} and start again"
            )
        return best

    def save_beside(self, checkpoint: Path) -> None:
        """Write what the method keeps in a checkpoint beside TRL's files; the main process calls it before the mark."""

    def restore_beside(self, checkpoint: Path) -> None:
        """Read what `save_beside` wrote, in every process, before the run goes on from there."""

    def _load_best_model(self) -> None:
        self.state.best_model_checkpoint = str(self.best_checkpoint())
        super()._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark complete, and only then rotate: a crash at any moment leaves a whole checkpoint behind."""
        directory = Path(self.args.output_dir)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with self.window.paused():
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    checkpoint = directory / f"checkpoint-{self.state.global_step}"
                    (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
                    write_both_forms(checkpoint)
                    self.save_beside(checkpoint)
                    checkpoints.mark_complete(checkpoint)
                    checkpoints.rotate(directory, limit, self.state.best_model_checkpoint)
                self.accelerator.wait_for_everyone()
            except (OSError, RuntimeError, SafetensorError) as error:
                if not is_write_error(error):
                    raise
                last = checkpoints.last_complete(directory)
                raise CheckpointError(
                    f"{directory}: checkpoint-{self.state.global_step} could not be written ({error}); free space or "
                    f"choose another --output_dir; the last whole checkpoint is {last.name if last else 'none yet'}"
                ) from error
            finally:
                self.args.save_total_limit = limit


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written; torch.save says so with a RuntimeError of its zip writer."""
    return (
        not isinstance(error, RuntimeError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
    )


class Phases:
    """Wall seconds of parts of a step, since the last logged one."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self.seconds = Counter[str]()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of this block to a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def close(self, steps: int, whole: float, rest: str) -> dict[str, float]:
        """Seconds a step by part, `rest` being what they leave of the `whole`; the next ones count from here on."""
        parts = {name: self.seconds[name] for name in self.names}
        parts[rest] = whole - sum(parts.values())
        figures = {f"seconds/{name}": round(value / steps, 4) for name, value in parts.items()}
        self.start()
        return figures


class Window:
    """Tokens and seconds since the last logged step, without evaluation and saving."""

    def __init__(self, trainer: WholeRun) -> None:
        self.trainer = trainer
        self.excluded = 0.0
        self.started = time.perf_counter()
        self.tokens_before: int | None = None
        self.step_before = 0
        device = trainer.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        precision = {"bf16": "bfloat16", "fp16": "float16"}.get(trainer.accelerator.mixed_precision, "float32")
        # MFU speaks of forward and backward passes; of GRPO's seconds most are generation, and it has no max_length.
        self.peak_flops = get_peak_flops(name, precision) if name and hasattr(trainer.args, "max_length") else None

    def open(self) -> None:
        """Start counting; called when training begins or resumes."""
        self.started, self.excluded = time.perf_counter(), 0.0
        self.tokens_before = self.trainer.state.num_input_tokens_seen
        self.step_before = self.trainer.state.global_step

    def seconds(self) -> float:
        """Seconds of training since the window opened."""
        return time.perf_counter() - self.started - self.excluded

    def close(self) -> dict[str, float]:
        """Figures of the window that ends now; the next one starts."""
        state = self.trainer.state
        figures: dict[str, float] = {"tokens_seen": state.num_input_tokens_seen}
        if self.tokens_before is not None:
            rate = (state.num_input_tokens_seen - self.tokens_before) / self.seconds()
            figures["tokens_per_second"] = round(rate, 1)
            if self.peak_flops:
                config = self.trainer.model.config.get_text_config()
                length = self.trainer.args.max_length
                processes = self.trainer.accelerator.num_processes
                mfu = compute_mfu(compute_flops_per_token(config, length), rate, processes, self.peak_flops)
                figures["mfu"] = round(adjusted_mfu(mfu, config, length) / 100, 4)
        figures["peak_memory_gib"] = round(peak_memory_bytes() / GIB, 3)
        self.open()
        return figures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Seconds inside this block do not count as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.excluded += time.perf_counter() - began


def peak_memory_bytes() -> int:
    """Largest memory this process held: on its GPU where it has one, else resident."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()
