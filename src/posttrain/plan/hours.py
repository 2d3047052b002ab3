"""Steps, tokens, seconds and money of a recipe, by the operations of a model and a stated share of a device's peak."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.plan.devices import Machine
from posttrain.plan.memory.activations import FLOAT32
from posttrain.plan.memory.generation import CONTEXT, cache_bytes
from posttrain.plan.memory.process import Sizes
from posttrain.plan.memory.training_sizes import row_length
from posttrain.plan.shapes import Shape
from posttrain.recipe.methods import find_method

TRAINING_SHARE = 0.32  # of a device's peak operations: 0.31 to 0.33 of an H100 by docs/results/gpu.md, runs replace it
DECODING_SHARE = 0.30  # of a device's memory bandwidth, that decoding reaches
PACKING_FILL = 0.98  # of a packed row that is tokens
SERVER_ROWS = 256  # completions that vLLM decodes at once, if their keys and values fit


@dataclass(frozen=True)
class Data:
    """What is known of a recipe's rows before they are read: their number, their tokens and those of the longest.

    None is what nobody counted.
    """

    rows: int | None = None
    tokens: float | None = None
    longest: int | None = None

    @property
    def mean(self) -> float | None:
        return self.tokens / self.rows if self.rows and self.tokens else None


def read_data(values: dict[str, Any]) -> Data:
    """Rows and tokens of the train split by the manifest of a prepared dataset."""
    path = Path(str(values.get("dataset_name"))) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        rows = int(manifest["counts"]["kept"]["train"])
        bars = (manifest["tokens"]["histogram"] or {}).get("train") or {}
        half = int(manifest["tokens"]["step"]) / 2
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Data()
    tokens = sum((int(bar) + half) * count for bar, count in bars.items())
    wanted = min(rows, int(values.get("num_train_examples") or rows))
    longest = max((int(bar) + int(2 * half) for bar in bars), default=None)
    return Data(wanted, tokens * wanted / rows if tokens else None, longest)


@dataclass(frozen=True)
class Pace:
    """What earlier runs took on this device; None or nothing is what none of them measured."""

    achieved: float | None = None  # operations a second of one training process
    row: float | None = None  # tokens of a row of these data, where nobody counted them
    phases: dict[str, float] = field(default_factory=dict)  # GRPO: seconds by phase for each row of a step
    stop: float | None = None  # seconds of each stop for evaluation, guard or saving

    def of(self, data: Data) -> Data:
        """The data with the tokens that a run counted, unless they were counted before."""
        counted = data.tokens is not None or data.rows is None or self.row is None
        return data if counted else replace(data, tokens=data.rows * self.row)


UNMEASURED = Pace()


@dataclass(frozen=True)
class Work:
    """A run's steps and the tokens that it computes, with what they rest on; None where nothing says it."""

    steps: int | None
    rows_a_step: int
    tokens_a_step: float
    row: float  # tokens of a row, on average
    epochs: float | None = None
    generated_a_step: float = 0.0
    at_most: bool = False  # rows are counted at their longest

    @property
    def tokens(self) -> float | None:
        return None if self.steps is None else self.steps * self.tokens_a_step


def work_of(values: dict[str, Any], sizes: Sizes, data: Data) -> Work:
    """Steps and tokens of a training recipe."""
    method, longest = find_method(values["trainer"]), row_length(values)
    rows_at_once = int(values.get("per_device_train_batch_size", 8)) * sizes.processes
    rows_a_step = rows_at_once * sizes.accumulation
    repeated = int(values.get("num_iterations", 1)) if values["trainer"] in ("grpo", "value") else 1
    rows, mean = None if data.rows is None else data.rows * repeated, min(longest, data.mean or longest)
    tokens_a_step, generated, at_most = rows_a_step * mean * method.rows, 0.0, data.mean is None
    if values["trainer"] == "grpo":
        completion = int(values["max_completion_length"])
        rows = None if rows is None else rows * int(values["num_generations"])
        mean, at_most = min(longest, CONTEXT + completion), True
        tokens_a_step, generated = rows_a_step * mean, rows_a_step * completion / repeated
        if values.get("dynamic_sampling"):
            generated *= int(values.get("max_generation_batches", 10))
    elif values.get("packing"):
        filled = PACKING_FILL * longest
        rows = None if data.tokens is None else math.ceil(data.tokens / filled)
        tokens_a_step = rows_a_step * filled
    # The last step of an epoch may have fewer micro-batches.
    epoch = None if rows is None else max(1, math.ceil(math.ceil(rows / rows_at_once) / sizes.accumulation))
    steps, epochs = int(values.get("max_steps") or -1), float(values.get("num_train_epochs", 3))
    if steps > 0:
        epochs = steps / epoch if epoch else None
    else:
        steps = None if epoch is None else math.ceil(epochs * epoch)
    return Work(steps, rows_a_step, tokens_a_step, mean, epochs, generated, at_most)


def stops(values: dict[str, Any], steps: int, epochs: float | None) -> int:
    """How often a run stops training: each evaluation, guard and checkpoint, and the end."""
    found = 1
    for kind, default in {"eval": "no", "save": "steps"}.items():
        strategy = str(values.get(f"{kind}_strategy", default))
        if strategy == "steps":
            found += math.ceil(steps / int(values.get(f"{kind}_steps") or 500))
        elif strategy == "epoch":
            found += math.ceil(epochs or 1)
    guard = int(values.get("guard_steps") or 0)
    return found + (1 + steps // guard if guard else 0)


def training_flops(shape: Shape, sizes: Sizes, row: float) -> float:
    """Operations of forward and backward for a token in rows of `row` tokens, what is computed twice counted twice."""
    linear = 2.0 * (shape.layers * shape.matrices + (0 if sizes.head == "none" else shape.embedding))
    attention = 2.0 * shape.layers * shape.query * row  # scores and values, each of half the row on average
    backward = (linear if sizes.adapter else 2 * linear) + 2 * attention  # a frozen matrix has no gradient of its own
    again = 2.0 * shape.layers * shape.matrices + attention if sizes.checkpointing else 0.0
    frozen = 2.0 * sizes.frozen_copies / max(sizes.precision.weight, 1)  # a teacher's or a reference's forward pass
    return linear + attention + backward + again + frozen


def training_seconds(work: Work, sizes: Sizes, machine: Machine, achieved: float | None = None) -> float | None:
    """Seconds of the computation of one step; None where nothing says how fast the device is.

    `achieved` is in operations a second of one process, measured; without it a share of the device's peak.
    """
    half = sizes.precision.activation < FLOAT32
    peak = machine.device.tflops if half else machine.device.tflops32
    if achieved is None and peak is None:
        return None
    rate = achieved or TRAINING_SHARE * (peak or 0) * 1e12
    return work.tokens_a_step * training_flops(sizes.shape, sizes, work.row) / (rate * sizes.processes)


def decoding_seconds(
    shape: Shape, tokens: float, rows: float, context: float, machine: Machine, devices: int = 1
) -> float | None:
    """Seconds in which `rows` at a time decode `tokens` on so many devices, each with the whole model in bfloat16."""
    bandwidth = machine.device.bandwidth
    if not bandwidth or rows < 1:
        return None
    at_once = min(rows, SERVER_ROWS)
    step = (2 * shape.parameters + at_once * context / 2 * cache_bytes(shape)) / (DECODING_SHARE * bandwidth * 1e9)
    return tokens / (at_once * devices) * step
