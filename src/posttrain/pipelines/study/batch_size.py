"""The largest micro-batch of every cell of a grid: doubling, then bisection, each trial a process that may die.

Trials are lines of `trials.jsonl`; the same command goes on after the last whole one.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from posttrain import atomic, jsonl, lineage
from posttrain.console import say
from posttrain.errors import PosttrainError, yaml_fault
from posttrain.pipelines.study.trial import FAILED, FITS, Outcome, Trial, watch
from posttrain.plan.devices import Device, this_processor
from posttrain.plan.memory.process import GIB, gib, largest_batch
from posttrain.plan.memory.training_sizes import Topology, training_sizes
from posttrain.plan.shapes import read_shape
from posttrain.recipe.reader import override_arguments, read_recipe

TRIALS = "trials.jsonl"
METHODS = ("sft", "dpo", "distill")  # whose rows a trial can make up
AXES = {"recipe": str, "length": int, "gradient_checkpointing": bool, "attn_implementation": str, "optim": str}
LINE = {"study": str, "cell": dict, "rows": int, "ended": str, "peak": int, "seconds": float, "reason": str}


class BatchStudyError(PosttrainError):
    """A file that is no study of batch sizes, or trials of another one."""


@dataclass(frozen=True)
class BatchStudy:
    """A grid over AXES; everything else of a trial is the same in all cells.

    `budget_gib` is the memory that a trial with its children may hold on a CPU, where there is no device that ends it.
    """

    grid: dict[str, list[Any]]
    output_dir: str
    largest: int = 64
    budget_gib: float | None = None
    use_cpu: bool = True
    mixed_precision: str = "no"
    override: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, by axis."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def trial(self, cell: dict[str, Any], rows: int) -> Trial:
        recipe = cell["recipe"]
        values = {**self.override, **({"optim": cell["optim"]} if "optim" in cell else {})}
        return Trial(
            recipe=recipe,
            trainer=trainer_of(recipe),
            values=values,
            rows=rows,
            length=cell["length"],
            gradient_checkpointing=cell.get("gradient_checkpointing", False),
            attn_implementation=cell.get("attn_implementation", "sdpa"),
            mixed_precision=self.mixed_precision,
            use_cpu=self.use_cpu,
        )

    @property
    def budget(self) -> float | None:
        return None if self.budget_gib is None else self.budget_gib * GIB


def trainer_of(recipe: str) -> str:
    return str(yaml.safe_load(Path(recipe).read_text())["trainer"])


def read_batch_study(path: Path) -> BatchStudy:
    """The study in a file, each cell of which is known to be a good recipe; raises BatchStudyError."""
    try:
        study = BatchStudy(**yaml.safe_load(path.read_text()))
        grid = dict(study.grid)
    except yaml.YAMLError as error:
        raise BatchStudyError(f"{path}{yaml_fault(error)}") from error
    except (OSError, TypeError, ValueError) as error:
        known = ", ".join(f.name for f in fields(BatchStudy))
        raise BatchStudyError(f"{path}: {' '.join(str(error).split())}; expected the keys {known}") from error
    if unknown := [axis for axis in grid if axis not in AXES]:
        raise BatchStudyError(f"{path}: grid: {unknown[0]}: unknown; expected {', '.join(AXES)}")
    for axis, kind in AXES.items():
        values = grid.get(axis, [])
        if not isinstance(values, list) or (axis in ("recipe", "length") and not values):
            raise BatchStudyError(f"{path}: grid: {axis}: expected a list of values, got {values!r}")
        if wrong := [v for v in values if not isinstance(v, kind) or (kind is int and (isinstance(v, bool) or v < 16))]:
            raise BatchStudyError(
                f"{path}: grid: {axis}: {wrong[0]!r}: expected {kind.__name__}s, lengths of 16 or more"
            )
    if study.use_cpu and (not isinstance(study.budget_gib, int | float) or study.budget_gib <= 0):
        raise BatchStudyError(f"{path}: budget_gib: {study.budget_gib!r}: expected GiB with use_cpu: true")
    if not isinstance(study.largest, int) or study.largest < 1:
        raise BatchStudyError(f"{path}: largest: {study.largest!r}: expected a number of rows, 1 or more")
    for cell in study.cells():
        if not Path(cell["recipe"]).is_file() or trainer_of(cell["recipe"]) not in METHODS:
            raise BatchStudyError(f"{path}: grid: recipe: {cell['recipe']}: expected recipes of {', '.join(METHODS)}")
        values_of(study, cell)
    return study


def values_of(study: BatchStudy, cell: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values of a cell with one row; raises RecipeError where they make no recipe."""
    trial = study.trial(cell, 1)
    overrides = trial.overrides(Path(study.output_dir) / "trial")
    return read_recipe([trial.recipe, *override_arguments(overrides)], trial.trainer).values


def planned(study: BatchStudy, cell: dict[str, Any], device: Device | None = None) -> int:
    """The rows that the plan says would fit; 0 where not even one would."""
    trial, values = study.trial(cell, 1), values_of(study, cell)
    topology = Topology(
        processes=1, autocast=study.mixed_precision != "no", use_cpu=study.use_cpu,
        checkpointing=trial.gradient_checkpointing, attention=trial.attn_implementation,
    )  # fmt: skip
    shape = read_shape(str(values["model_name_or_path"]), values.get("model_revision"))
    usable = study.budget or (device or this_processor()).usable
    each = 2 if trial.trainer == "dpo" else 1  # sequences that a row of the batch is
    return min(study.largest, largest_batch(training_sizes(values, topology, shape), usable) // each)


def search(fits: Callable[[int], bool], largest: int) -> int:
    """The most rows of 1 to `largest` that fit, by doubling and bisection; 0 where one does not.

    What fits is taken to be a lower part: with more rows nothing fits that did not with fewer.
    """
    low, high = 0, 1
    while high <= largest and fits(high):
        low, high = high, 2 * high
    if low == largest:
        return low
    high = min(high, largest + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def run_batch_study(study: BatchStudy, run: Callable[[Trial, float | None], Outcome] = watch) -> list[dict[str, Any]]:
    """Every cell with its largest number of rows, the peak there, and the plan's number; goes on where it stopped."""
    path = Path(study.output_dir) / TRIALS
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read_trials(path, study)
    atomic.write_bytes(path, "".join(map(jsonl.sealed, done)).encode())  # a line that was cut would spoil the next one
    results = []
    for cell in study.cells():
        tried: dict[int, dict[str, Any]] = {line["rows"]: line for line in done if line["cell"] == cell}

        def fits(rows: int, cell: dict[str, Any] = cell, tried: dict[int, dict[str, Any]] = tried) -> bool:
            if rows not in tried:
                outcome = run(study.trial(cell, rows), study.budget)
                tried[rows] = {"study": identity(study), "cell": cell, "rows": rows, **_told(outcome)}
                with path.open("a") as file:
                    file.write(jsonl.sealed(tried[rows]))
                say(f"{name_of(cell)}: {rows} rows: {outcome.ended}, {gib(outcome.peak)}, {outcome.seconds:.0f} s")
            if tried[rows]["ended"] == FAILED:
                raise BatchStudyError(f"{name_of(cell)}: {rows} rows: failed: {tried[rows]['reason']}")
            return bool(tried[rows]["ended"] == FITS)

        rows = search(fits, study.largest)
        peak = tried[rows]["peak"] if rows else None
        results.append({"cell": cell, "rows": rows, "peak": peak, "planned": planned(study, cell)})
    return results


def _told(outcome: Outcome) -> dict[str, Any]:
    told = asdict(outcome)
    return {name: told[name] for name in ("ended", "peak", "seconds", "reason")}


def read_trials(path: Path, study: BatchStudy) -> list[dict[str, Any]]:
    """Trials that ended earlier; a cut or damaged line is tried again, a failed one too. Raises for another study's."""
    if not path.is_file():
        return []
    lines = [line for line in jsonl.unsealed(path.read_bytes().splitlines(keepends=True), LINE) if line is not None]
    if others := [line for line in lines if line["study"] != identity(study)]:
        raise BatchStudyError(
            f"{path}: {len(others)} of {len(lines)} are of other settings; remove it or choose another output_dir"
        )
    return [line for line in lines if line["ended"] != FAILED]


def identity(study: BatchStudy) -> str:
    """What all trials of a study share, as a digest; cells and the largest number may be added."""
    shared = {"budget": study.budget_gib, "cpu": study.use_cpu, "precision": study.mixed_precision}
    return lineage.digest([shared, study.override])[:16]


def name_of(cell: dict[str, Any]) -> str:
    return ", ".join(f"{axis} {Path(str(value)).stem if axis == 'recipe' else value}" for axis, value in cell.items())
