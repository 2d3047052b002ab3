"""Keep a finished evaluation in the repository: compressed, and without a path of the machine that it ran on.

What is kept is an evaluation directory like any other: `make score` grades it again, `make compare` compares it.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from posttrain import atomic, jsonl, lineage
from posttrain.errors import PosttrainError
from posttrain.evaluation.comparison import compare
from posttrain.evaluation.results import (
    COMPRESSED_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    read_metrics,
    read_samples,
    write_metrics,
    write_samples,
)

ABOUT_FILE = "about.json"
SECONDS_FILE = "seconds.jsonl"  # of expert iteration: its stages
RECORDED = (
    "run_id", "started", "finished", "argv", "code", "packages", "identity", "recipe", "hardware", "inputs", "result",
)  # fmt: skip
# Where a path of this repository begins, whatever machine it was on; results come first, as they hold folders of data.
RESULTS = ("outputs", "evals")
FOLDERS = ("accelerate_configs", "assets", "data", "data_prep", "models", "recipes", "src", "studies")
ABSOLUTE = re.compile(r"(?<![\w.~:/-])/[\w.+@~-]+(?:/[\w.+@~-]+)+/?")
TEXT_OR_NONE = (str, type(None))
ABOUT = {"title": str, "base": TEXT_OR_NONE, "command": TEXT_OR_NONE, "hours": (float, type(None))}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a kept run was: its line in the table, what it is compared with, its command and its wall-clock hours.

    `base` is the name of the kept run it started from; None for a model before training.
    """

    title: str
    base: str | None = None
    command: str | None = None
    hours: float | None = None


def keep(evaluation: Path, run: Path | None, about: About, target: Path) -> list[Path]:
    """Copy finished benchmarks into `target`/<benchmark>, with the record of the run that trained the weights.

    evaluation: evals/<run>, or evals/<run>/<benchmark> for one of its benchmarks    run: outputs/<run>, None untrained
    Raises PosttrainError where nothing is finished, the benchmark is kept already, or its start is not or was asked
    otherwise.
    """
    found = [evaluation] if (evaluation / METRICS_FILE).is_file() else sorted(evaluation.glob(f"*/{METRICS_FILE}"))
    sources = [path if path.is_dir() else path.parent for path in found]
    if not sources:
        raise PosttrainError(f"{evaluation}: holds no finished evaluation; expected evals/<run>[/<benchmark>]")
    record = lineage.read_record(run) if run else None
    if run and record is None:
        raise PosttrainError(f"{run}: has no {lineage.RUN_FILE}; expected the output directory of a run")
    places = [target / read_metrics(source)["benchmark"] for source in sources]
    for source, place in zip(sources, places, strict=True):
        if place.exists():
            raise PosttrainError(f"{place}: is kept already; remove it first, or take another --name")
        if about.base:
            compare(target.parent / about.base / place.name, source, shared=True)  # raises where they cannot be
    for source, place in zip(sources, places, strict=True):
        settings, samples = read_samples(source)
        write_samples(place / COMPRESSED_FILE, samples)
        settings = without_paths(settings)
        atomic.write_json(place / SETTINGS_FILE, settings)
        write_metrics(place, settings, samples)
    if record:
        kept = without_paths({key: record[key] for key in RECORDED if key in record})
        jsonl.write_sealed(target / lineage.RUN_FILE, kept)
    atomic.write_json(target / ABOUT_FILE, asdict(about))
    return places


def read_about(directory: Path) -> About:
    """about.json of a kept run; raises DamageError where it is missing or none."""
    remedy = "keep the evaluation again: python src/results_table.py --keep …"
    values = jsonl.read_object(directory / ABOUT_FILE, ABOUT, remedy)
    if values is None:
        raise PosttrainError(f"{directory / ABOUT_FILE}: missing; {remedy}")
    return About(**{key: values[key] for key in ABOUT})


def without_paths(value: Any) -> Any:
    """A JSON value in which each absolute path is one of this repository, or the last name of it alone."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    return ABSOLUTE.sub(lambda found: relative(found.group()), value)


def relative(path: str) -> str:
    """An absolute path from the folder of this repository on that it leads into: /home/x/data/gsm8k → data/gsm8k."""
    parts = PurePosixPath(path).parts
    for folders in (RESULTS, FOLDERS):
        places = [i for i, part in enumerate(parts) if part in folders]
        if places:
            return "/".join(parts[places[-1] :])
    return parts[-1]


def hours_of(run: Path) -> float | None:
    """Wall-clock hours of a run without evaluation: of its stages where it has several, else of its training.

    None where it says neither.
    """
    if (run / SECONDS_FILE).is_file():
        stages = jsonl.read_lines(run / SECONDS_FILE, {"stage": str, "seconds": float}, "remove the line")
        return sum(stage["seconds"] for stage in stages if not stage["stage"].startswith("evaluate")) / 3600
    seconds = ((lineage.read_record(run) or {}).get("result") or {}).get("wall_seconds")
    return None if seconds is None else seconds / 3600


def command_of(run: Path) -> str | None:
    """The command that trained a run, without paths of its machine and without the interpreter."""
    argv = (lineage.read_record(run) or {}).get("argv")
    return " ".join(without_paths(argv)) if argv else None
