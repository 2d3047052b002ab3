"""A grid over the fields of a recipe: each cell is a normal run directory with normal evaluations beside it."""

import itertools
import os
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from posttrain import atomic, digests, lineage, processes
from posttrain.console import command_line, say
from posttrain.errors import PosttrainError, yaml_fault
from posttrain.evaluation.results import METRICS_FILE
from posttrain.hardware import VARIABLE, find_config
from posttrain.models import checkpoints
from posttrain.models.source import check_model
from posttrain.recipe.reader import override_arguments, read_recipe
from posttrain.training import preemption

SCRIPTS = Path(__file__).parents[3]
BASE = "base"
EVALS, REPORT = "evals", "report"  # directories beside the cells
RESERVED = (BASE, EVALS, REPORT)
SETTINGS_FILE = "asked.json"  # what the study said when it began; the mark is written last


class StudyError(PosttrainError):
    """A study that is written wrongly, or whose cells failed."""


@dataclass(frozen=True)
class Study:
    """What a study file says. `grid` maps recipe fields to their values; `override` holds for every cell.

    `variants` takes the place of a grid where cells differ in several fields: a name and its fields.
    """

    recipe: str
    eval_recipe: str
    output_dir: str
    grid: dict[str, list[Any]] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    override: dict[str, Any] = field(default_factory=dict)
    eval_override: dict[str, Any] = field(default_factory=dict)
    checkpoints: bool = False  # evaluate every saved checkpoint, for curves over steps

    def cells(self) -> dict[str, dict[str, Any]]:
        """Overrides of each cell by its name, in the order of the file."""
        if self.variants:
            return self.variants
        combinations = itertools.product(*self.grid.values())
        settings = [dict(zip(self.grid, values, strict=True)) for values in combinations]
        return {cell_name(setting): setting for setting in settings}


def cell_name(setting: dict[str, Any]) -> str:
    """A directory name: field=value pairs, a path by its last part; of two cells with one name the study is refused."""
    return ",".join(f"{key}={str(value).rpartition('/')[2]}" for key, value in setting.items())


def read_study(path: Path) -> Study:
    """The study in a file, each of its cells known to be a good recipe."""
    try:
        study = Study(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(f"{path}{yaml_fault(error)}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        known = ", ".join(f.name for f in fields(Study))
        raise StudyError(f"{path}: {' '.join(str(error).split())}; a study has the keys {known}") from error
    if bool(study.grid) == bool(study.variants):
        raise StudyError(f"{path}: expected either a grid or variants")
    if not all(isinstance(values, list) and values for values in study.grid.values()):
        raise StudyError(f"{path}: grid: expected a field with a list of values, got {study.grid!r}")
    if not all(isinstance(values, dict) for values in study.variants.values()):
        raise StudyError(f"{path}: variants: expected a name with its fields, got {study.variants!r}")
    names = study.cells()
    if study.grid and len(names) != len(list(itertools.product(*study.grid.values()))):
        raise StudyError(
            f"{path}: grid: two cells have one name, as a value comes twice, or two paths end in the same part; list "
            f"each value once, or give such cells names of their own under variants"
        )
    if taken := [name for name in names if name in (*RESERVED, ".", "..") or "/" in name]:
        raise StudyError(
            f"{path}: {', '.join(taken)}: not a name for a cell; expected a directory other than {', '.join(RESERVED)}"
        )
    for name in names:
        read_recipe([study.recipe, *train_arguments(study, name)], trainer_of(study))
    read_recipe([study.eval_recipe, *override_arguments(study.eval_override)], "eval")
    return study


def facts(study: Study) -> dict[str, str]:
    """Lines of the header."""
    cells = study.cells()
    done = sum(is_trained(study, name) for name in cells)
    varied = ", ".join(study.grid) or "variants"
    return {
        "model": recipe_value(study, "model_name_or_path"),
        "recipes": f"{study.recipe}, evaluated by {study.eval_recipe}",
        "cells": f"{len(cells)} of {varied}" + (f", {done} trained already" if done else ""),
    }


def trainer_of(study: Study) -> str:
    return str(yaml.safe_load(Path(study.recipe).read_text()).get("trainer"))


def train_arguments(study: Study, name: str) -> list[str]:
    values = {**study.override, **study.cells()[name], "output_dir": str(Path(study.output_dir) / name)}
    return override_arguments(values)


def train_command(study: Study, name: str) -> list[str]:
    """The command of a cell's run; it resumes, and leaves a finished run alone."""
    trainer = trainer_of(study)
    script = [str(SCRIPTS / f"{trainer}.py"), study.recipe, *train_arguments(study, name)]
    config = find_config()
    if config is None:
        raise StudyError(f"no accelerate config: put {VARIABLE}=accelerate_configs/….yaml before the command")
    if trainer == "expert_iteration":  # launches its training itself
        return [sys.executable, *script]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *script]


def points(study: Study, name: str) -> dict[int, str]:
    """Checkpoints of a cell to evaluate, by step; the last is the run's final one."""
    run = Path(study.output_dir) / name
    record = lineage.read_record(run) or {}
    last = (record.get("result") or {}).get("steps") or 0
    saved = checkpoints.steps_of(run) if study.checkpoints else {}
    return {**{step: str(path) for step, path in saved.items() if step < last}, last: str(run / "final")}


def evaluate_command(study: Study, model: str, out: Path) -> list[str]:
    values = {**study.eval_override, "model": model, "output_dir": str(out)}
    return [sys.executable, str(SCRIPTS / "eval.py"), study.eval_recipe, *override_arguments(values)]


def evaluation_directory(study: Study, name: str, step: int) -> Path:
    return Path(study.output_dir) / EVALS / name / f"step_{step}"


def training_settings(study: Study, name: str) -> dict[str, Any]:
    """Everything that the study, its recipe included, says about the run of a cell."""
    values = read_recipe([study.recipe, *train_arguments(study, name)], trainer_of(study)).values
    return {key: value for key, value in values.items() if key != "output_dir"}


def is_trained(study: Study, name: str) -> bool:
    """Whether a cell's run is finished under the settings of now; where not, its command goes on with it or refuses."""
    record = lineage.read_record(Path(study.output_dir) / name)
    asked = lineage.read_json(Path(study.output_dir) / EVALS / name / SETTINGS_FILE)
    return bool(record and record["finished"]) and asked == training_settings(study, name)


def evaluation_settings(study: Study, name: str, model: str, out: Path) -> dict[str, Any]:
    """Everything that the study, its recipe included, says about an evaluation, and which run the weights are of."""
    record = lineage.read_record(Path(study.output_dir) / name)
    values = read_recipe(evaluate_command(study, model, out)[2:], "eval").values
    asked = {key: value for key, value in values.items() if key not in ("model", "output_dir")}
    if record is None:
        return {**asked, "weights": model}
    rounds = (record["result"] or {}).get("rounds")  # more of them continue a run
    return {**asked, "weights": {"run_id": record["run_id"], "rounds": rounds}}


def is_evaluated(study: Study, name: str, step: int, model: str) -> bool:
    """Whether an evaluation is whole; raises StudyError where it was begun under other settings than those of now."""
    out = evaluation_directory(study, name, step)
    theirs, ours = lineage.read_json(out / SETTINGS_FILE), evaluation_settings(study, name, model, out)
    if theirs is None:
        return False
    if different := [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]:
        first = different[0]
        raise StudyError(
            f"{out}: evaluated under other settings, which differ in {', '.join(different)} ({first}: "
            f"{theirs.get(first)!r} there, {ours.get(first)!r} here); remove it or choose another output_dir"
        )
    try:
        return digests.check_files(out, None, "it is evaluated again") or (out / digests.MARK).is_file()
    except digests.DamageError as error:
        print(error, flush=True)
        return False


def run_study(study: Study, devices: list[str], share: tuple[int, int] = (0, 1)) -> None:
    """Every cell of a share, one after another or one per device of `devices`.

    The shares are every Nth cell from the Kth on, the model as it is being the first. Raises StudyError naming the
    cells that failed.
    """
    base = recipe_value(study, "model_name_or_path")
    check_model(base)
    free: queue.Queue[str | None] = queue.Queue()
    for device in devices or [None]:  # type: ignore[list-item]
        free.put(device)
    with preemption.passed_on():
        own = [BASE, *study.cells()][share[0] :: share[1]]
        _run_all(study, own, base, free, max(1, len(devices)))


def _run_all(study: Study, names: list[str], base: str, free: "queue.Queue[str | None]", at_once: int) -> None:
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        works = {name: (_run_base, study, base) if name == BASE else (_run_cell, study, name) for name in names}
        started = {name: pool.submit(_on_a_device, free, *work) for name, work in works.items()}
    failed = {name: error for name, future in started.items() if (error := future.exception())}
    if failed:
        lines = [f"{name}: {error}" for name, error in failed.items()]
        raise StudyError(
            "\n       ".join([f"{len(failed)} of {len(started)} cells failed; the same command goes on", *lines])
        )


def check_finished(study: Study) -> None:
    """Raise StudyError unless every result that a report reads is there, under the settings of now."""
    base = {0: recipe_value(study, "model_name_or_path")}
    for name in (BASE, *study.cells()):
        whole = name == BASE or is_trained(study, name)
        models = base if name == BASE else points(study, name)
        if not whole or not all(is_evaluated(study, name, step, model) for step, model in models.items()):
            raise StudyError(
                f"{study.output_dir}: {name}: unfinished, or of other settings; start the study without --report-only"
            )


def _on_a_device(free: "queue.Queue[str | None]", work: Any, *arguments: Any) -> None:
    device = free.get()
    try:
        work(*arguments, device)
    finally:
        free.put(device)


def _run_base(study: Study, base: str, device: str | None) -> None:
    _evaluate(study, BASE, 0, base, device)


def _run_cell(study: Study, name: str, device: str | None) -> None:
    if not is_trained(study, name):
        _run(train_command(study, name), device)
        asked = training_settings(study, name)
        atomic.write_json(Path(study.output_dir) / EVALS / name / SETTINGS_FILE, asked)
    for step, model in points(study, name).items():
        _evaluate(study, name, step, model, device)


def _evaluate(study: Study, name: str, step: int, model: str, device: str | None) -> None:
    out = evaluation_directory(study, name, step)
    if not is_evaluated(study, name, step, model):
        (out / digests.MARK).unlink(missing_ok=True)  # of nobody known: the command holds what is there to this
        atomic.write_json(out / SETTINGS_FILE, evaluation_settings(study, name, model, out))
        _run(evaluate_command(study, model, out), device)
        files = sorted(out.glob(f"*/{METRICS_FILE}"))
        digests.write_mark(out, {str(path.relative_to(out)): digests.stamp(path) for path in files})


def _run(command: list[str], device: str | None) -> None:
    environment = dict(os.environ)
    if device is not None:  # other cells speak at the same time: lines that name their run, and no bars
        environment |= {"CUDA_VISIBLE_DEVICES": device, "TERM": "dumb"}
    say(f"$ {command_line(command)}")
    with processes.running(command, env=environment) as process:
        code = process.wait()
    if code:
        raise StudyError(f"exit code {code} of {command_line(command)}")


def recipe_value(study: Study, key: str) -> Any:
    return read_recipe([study.recipe, *override_arguments(study.override)], trainer_of(study)).values[key]
