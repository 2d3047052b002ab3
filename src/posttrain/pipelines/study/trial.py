"""One trial of a batch size, in a process of its own that may die: three real steps on rows of one length.

    python -m posttrain.pipelines.study.trial '{"recipe": "recipes/tiny_sft.yaml", "values": {…}, …}'

Trainer, model, optimizer and loss are those of the recipe; its rows are random ids, all of the full length.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from posttrain.hardware import Hardware
from posttrain.processes import running
from posttrain.recipe.methods import find_method
from posttrain.recipe.reader import Recipe, override_arguments, read_recipe

STEPS = 3
PROMPT = 8  # tokens of a row that are not trained on
LOOK_SECONDS = 0.05  # between two looks at a trial's memory
LITTLE = 64 * 2**20  # bytes, as of a process that keeps another
LONGEST_SECONDS = 900.0
FITS, MEMORY, FAILED = "fits", "memory", "failed"
SENTINEL = "trial: "
COMMAND = [sys.executable, "-m", "posttrain.pipelines.study.trial"]


@dataclass(frozen=True)
class Trial:
    """What is tried: a recipe under `values`, and what of an accelerate config matters."""

    recipe: str
    trainer: str
    values: dict[str, Any]
    rows: int
    length: int
    gradient_checkpointing: bool = False
    attn_implementation: str = "sdpa"
    mixed_precision: str = "no"
    use_cpu: bool = True

    def overrides(self, output_dir: Path) -> dict[str, Any]:
        """The recipe's fields for so many rows in one micro-batch, three steps and nothing else."""
        nothing_else = {
            "per_device_train_batch_size": self.rows, "gradient_accumulation_steps": 1, "max_steps": STEPS,
            "max_length": self.length, "save_strategy": "no", "eval_strategy": "no", "report_to": "none",
            "output_dir": str(output_dir), "plan": "off", "load_best_model_at_end": False,
        }  # fmt: skip
        if self.trainer == "sft":  # distillation has the field from there, and refuses it
            nothing_else["sample_generations"] = 0
        taken = find_method(self.trainer).fields
        return {**self.values, **{key: value for key, value in nothing_else.items() if key in taken}}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: it `fits`, ended for `memory`, or `failed` for another reason; with its peak in bytes."""

    ended: str
    peak: int
    seconds: float
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def watch(trial: Trial, budget: float | None) -> Outcome:
    """Run a trial as a process of its own. It is ended where it and its children hold more than `budget` bytes."""
    started, peak = time.monotonic(), 0
    command = [*COMMAND, json.dumps(asdict(trial))]
    with tempfile.TemporaryFile("w+") as output:
        with running(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(trial)) as process:
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                late = time.monotonic() - started > LONGEST_SECONDS
                if late or (budget is not None and peak > budget):
                    end(process.pid)
                    reason = f"longer than {LONGEST_SECONDS:.0f} s" if late else f"over {budget:,.0f} bytes"
                    return Outcome(FAILED if late else MEMORY, peak, time.monotonic() - started, reason)
                time.sleep(LOOK_SECONDS)
        output.seek(0)
        return outcome_of(output.read(), process.returncode, peak, time.monotonic() - started)


def outcome_of(output: str, code: int, peak: int, seconds: float) -> Outcome:
    """What a trial that ended by itself says; SIGKILL without an order of ours is the kernel's, for memory."""
    said = next((line for line in output.splitlines() if line.startswith(SENTINEL)), None)
    if code == 0 and said:
        result = json.loads(said.removeprefix(SENTINEL))
        return Outcome(FITS, max(peak, result["peak"]), seconds)
    last = output.strip().splitlines()[-1][:300] if output.strip() else ""
    short = code == -9 or "out of memory" in output.lower() or "MemoryError" in output or "can't allocate" in output
    return Outcome(MEMORY if short else FAILED, peak, seconds, last)


def resident(pid: int) -> int:
    """Bytes of memory that a process and all its descendants hold; what they share is counted once.

    What is shared is not looked for where all but one hold LITTLE: the kernel goes through every page for it, which
    takes a third of a core for ten GiB at twenty looks a second.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    whole = [_bytes(member, "rss") for member in family]
    if sum(whole) - max(whole) < LITTLE:
        return sum(whole)
    return whole[0] + sum(_bytes(member, "uss") for member in family[1:])


def _bytes(process: psutil.Process, kind: str) -> int:
    """Resident bytes, or those that are no other's (`uss`); 0 of a process that is gone."""
    try:
        return int(process.memory_info().rss if kind == "rss" else process.memory_full_info().uss)
    except psutil.Error:
        return 0


def end(pid: int) -> None:
    """Kill a process and its descendants."""
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        family = []
    for member in [psutil.Process(pid), *family]:
        try:
            member.kill()
        except psutil.Error:
            continue


def _environment(trial: Trial) -> dict[str, str]:
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": trial.mixed_precision, "HF_HUB_OFFLINE": "1"}
    environment.pop("POSTTRAIN_ACCELERATE_CONFIG", None)
    return environment | ({"ACCELERATE_USE_CPU": "true"} if trial.use_cpu else {})


def try_it(trial: Trial, output_dir: Path) -> int:
    """Three steps; returns the peak in bytes, of the device or of this process."""
    from posttrain.training.base_trainer import peak_memory_bytes

    recipe = read_recipe([trial.recipe, *override_arguments(trial.overrides(output_dir))], trial.trainer)
    hardware = Hardware(
        None, None, trial.gradient_checkpointing, trial.attn_implementation, trial.mixed_precision, trial.use_cpu, 1
    )
    build_trainer(recipe, hardware, trial).train()
    return peak_memory_bytes()


def build_trainer(recipe: Recipe, hardware: Hardware, trial: Trial) -> Any:
    """The trainer of a recipe on random rows, as its script builds it."""
    import torch
    from datasets import Dataset

    from posttrain.data.encode import IGNORED
    from posttrain.methods import distill, dpo, pairs, sft
    from posttrain.models.loading import load_tokenizer
    from posttrain.recipe.options import DistillOptions, PairOptions, SftOptions

    values, count = recipe.values, trial.rows * STEPS
    tokenizer = load_tokenizer(values["model_name_or_path"], values.get("model_revision"), values.get("eos_token"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (count, trial.length), generator=generator).tolist()
    if trial.trainer == "dpo":
        rows = [
            {"prompt_ids": row[:PROMPT], "chosen_ids": row[PROMPT:], "rejected_ids": row[PROMPT:][::-1]} for row in ids
        ]
        dataset = pairs.Pairs(Dataset.from_list(rows), None, {}, {})
        arguments = dpo.build_arguments(recipe, hardware)
        return dpo.build_trainer(recipe, recipe.build(PairOptions), arguments, hardware, tokenizer, dataset)
    rows = [{"input_ids": row, "labels": [IGNORED] * PROMPT + row[PROMPT:]} for row in ids]
    train = Dataset.from_list(rows)
    if trial.trainer == "distill":
        options = recipe.build(DistillOptions)
        arguments = distill.build_arguments(recipe, options, hardware)
        packed = _packed(train, arguments)
        return distill.build_trainer(recipe, options, arguments, hardware, tokenizer, sft.Rows(packed, None, {}, {}))
    arguments = sft.build_arguments(recipe, hardware)
    packed = sft.Rows(_packed(train, arguments), None, {}, {})
    return sft.build_trainer(recipe, recipe.build(SftOptions), arguments, hardware, tokenizer, packed, [])


def _packed(train: Any, arguments: Any) -> Any:
    from posttrain.data.packing import pack

    return (pack(train, arguments.max_length) if arguments.packing else train).with_format("numpy")


def main() -> None:
    trial = Trial(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as directory:
        peak = try_it(trial, Path(directory))
    print(f"{SENTINEL}{json.dumps({'peak': peak})}", flush=True)


if __name__ == "__main__":
    main()
