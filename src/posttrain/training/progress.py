"""What a run is, told before its first step, and how far it is: a bar on a terminal, a line now and then in a log.

They replace the callbacks of transformers, which print every log as a dictionary of strings.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging as library_bars

from posttrain.console import SECONDS_A_LINE, can_draw, clock, counted, header, plural, say
from posttrain.hardware import machine_facts

LINES = 4  # of a short run in a log file
# Figures of a log that a person reads at a glance; metrics.jsonl holds all of them.
HEADLINES = re.compile(r"loss|reward|(.*/)?accurac(y|ies)")


class Opening(TrainerCallback):
    """The header of a run: `trainer.facts`, and what is known only when training begins."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            accelerator = self.trainer.accelerator
            model = accelerator.unwrap_model(self.trainer.model)
            machine = machine_facts(model, accelerator.num_processes, accelerator.mixed_precision)
            waits = f"for one another at most {args.ddp_timeout:,} s (ddp_timeout)" if args.world_size > 1 else ""
            say(header({**self.trainer.facts, "steps": steps_line(args, state), **machine, "wait": waits}))


def steps_line(args: Any, state: Any) -> str:
    """`176 in 4 epochs, 16 rows each`; of a resumed run also the step it goes on from."""
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    resumed = f", on from step {state.global_step:,}" if state.global_step else ""
    return f"{state.max_steps:,} in {plural(state.num_train_epochs, 'epoch')}, {plural(rows, 'row')} each{resumed}"


def data_line(dataset: dict[str, Any]) -> str:
    """`data/tiny_math: 704 train, 56 validation, 3 too long left out`."""
    too_long = sum((dataset.get("dropped_too_long") or {}).values())
    return f"{dataset['path']}: {counted(dataset['used'] | {'too long left out': too_long})}"


def show_progress(trainer: Trainer) -> None:
    """Replace the callback that prints dictionaries by one that prints a line."""
    found = trainer.pop_callback(ProgressCallback) or trainer.pop_callback(PrinterCallback)
    if found is None:  # a notebook has a table of its own
        return
    plain = trainer.args.disable_tqdm or not can_draw(sys.stderr)
    trainer.add_callback(ProgressLines() if plain else ProgressBar())


def headline(logs: dict[str, Any], prefix: str = "") -> str:
    """The figures that say how it goes, `loss 0.1413, reward 0.62, 6,768 tokens/s`; `prefix` is `eval_` or nothing."""
    names = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    parts = [
        f"{name} {value:.4g}"
        for name, value in names.items()
        if HEADLINES.fullmatch(name) and isinstance(value, int | float)
    ]
    if (rate := logs.get("tokens_per_second")) is not None:
        parts.append(f"{rate:,.0f} tokens/s")
    return ", ".join(parts)


def is_evaluation(logs: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in logs)


class ProgressLines(PrinterCallback):
    """A line for every quarter of the run or half a minute, and one for every evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first_step = self.last_step = state.global_step
        self.started = self.last_time = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        step, now = state.global_step, time.monotonic()
        place = f"{Path(args.output_dir).name}: step {step:,} of {state.max_steps:,}"
        if is_evaluation(logs):
            print(f"{place}, held out: {headline(logs, 'eval_')}", file=sys.stderr, flush=True)
            return
        part = (step * LINES) // state.max_steps > (self.last_step * LINES) // state.max_steps
        if "loss" not in logs or not (part or now - self.last_time > SECONDS_A_LINE):
            return
        left = (now - self.started) / max(1, step - self.first_step) * (state.max_steps - step)
        self.last_step, self.last_time = step, now
        print(f"{place}: {headline(logs)}, {clock(left)} left", file=sys.stderr, flush=True)


class ProgressBar(ProgressCallback):
    """The bar of transformers with the figures behind it; evaluations are lines above it.

    Bars of the library for files it writes meanwhile would tear this one.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.hid = library_bars.is_progress_bar_enabled()
        library_bars.disable_progress_bar()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if is_evaluation(logs):
            self.training_bar.write(f"step {state.global_step:,}, held out: {headline(logs, 'eval_')}")
        elif "loss" in logs:
            self.training_bar.set_postfix_str(headline(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if self.hid:
            library_bars.enable_progress_bar()
