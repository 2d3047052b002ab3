"""Finished evaluations and runs, read from their directories and laid side by side: tables, curves, differences."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import PosttrainError
from posttrain.evaluation.comparison import Comparison, ComparisonError, compare, holm
from posttrain.evaluation.estimates import in_percent
from posttrain.evaluation.reference import REFERENCES
from posttrain.evaluation.results import METRICS_FILE, read_metrics
from posttrain.lineage import METRICS_FILE as RUN_METRICS
from posttrain.lineage import read_metrics as read_run_metrics
from posttrain.lineage import read_record
from posttrain.report.html_page import distinct_labels

CHECKPOINT = re.compile(r"checkpoint-(\d+)/*$")


class ReportError(PosttrainError):
    """A directory that holds nothing to report on, or a file in it that cannot be read."""


@dataclass(frozen=True, order=True)
class QuestionSet:
    """What was asked. Results of the same name but of another limit or another file are never laid side by side."""

    name: str
    limit: int  # 0: all questions
    data_sha256: str

    @property
    def title(self) -> str:
        return f"{self.name}, first {self.limit}" if self.limit else self.name


@dataclass(frozen=True)
class Evaluation:
    """One evaluated checkpoint: metrics.json by question set, and the directory of each."""

    label: str
    results: dict[QuestionSet, dict[str, Any]]
    directories: dict[QuestionSet, Path]


@dataclass(frozen=True)
class Run:
    """One training run: its run.json (empty where there is none) and the lines of metrics.jsonl."""

    label: str
    directory: Path
    record: dict[str, Any]
    steps: list[dict[str, Any]]


def read_evaluations(directories: Sequence[Path]) -> list[Evaluation]:
    """Evaluations in the order given, labelled so that no two labels are equal; raises ReportError."""
    evaluations = []
    for directory, label in zip(directories, distinct_labels(directories), strict=True):
        results, found = {}, {}
        for path in sorted(directory.glob(f"*/{METRICS_FILE}")):
            metrics = read_metrics(path.parent)
            key = QuestionSet(path.parent.name, metrics.get("limit") or 0, metrics["data_sha256"])
            results[key], found[key] = metrics, path.parent
        if not results:
            raise ReportError(f"{directory}: holds no finished evaluation; write one with src/eval.py")
        evaluations.append(Evaluation(label, results, found))
    return evaluations


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Runs in the order given; raises ReportError where one has logged nothing."""
    runs = []
    for directory, label in zip(directories, distinct_labels(directories), strict=True):
        path, record = directory / RUN_METRICS, read_record(directory)
        if not path.is_file():
            why = "the run has logged nothing" if record else "expected the output directory of a training script"
            raise ReportError(f"{path}: missing; {why}")
        runs.append(Run(label, directory, record or {}, read_run_metrics(directory, record)))
    return runs


def question_sets(evaluations: Sequence[Evaluation]) -> dict[QuestionSet, str]:
    """All sets that were asked with their titles, in order; two files of one name are told apart by their digests."""
    sets = sorted({key for evaluation in evaluations for key in evaluation.results})
    titles = [key.title for key in sets]
    return {
        key: key.title if titles.count(key.title) == 1 else f"{key.title} (data {key.data_sha256[:6]})" for key in sets
    }


def comparison_table(evaluations: Sequence[Evaluation]) -> str:
    """Accuracy with its interval of every checkpoint (columns) on every set of questions (rows), as text."""
    sets = question_sets(evaluations)
    width = max(14, *(len(title) + 2 for title in sets.values()))
    columns = [max(24, len(evaluation.label)) for evaluation in evaluations]
    heads = "".join(f"  {e.label:<{c}}" for e, c in zip(evaluations, columns, strict=True))
    lines = [f"{'accuracy':<{width}}{'n':>12}{heads}".rstrip()]
    for key, title in sets.items():
        found = [evaluation.results.get(key) for evaluation in evaluations]
        cells = "".join(f"  {_cell(metrics):<{c}}" for metrics, c in zip(found, columns, strict=True))
        counts = "/".join(dict.fromkeys(str(metrics["n"]) for metrics in found if metrics))
        lines.append(f"{title:<{width}}{counts:>12}{cells}".rstrip())
    return "\n".join(lines)


def _cell(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "-"
    accuracy = metrics["accuracy"]
    return in_percent(accuracy["value"], accuracy["low"], accuracy["high"])


def references(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Published scores of the models evaluated, or trained from, on the benchmarks of this report."""
    names = {metrics["checkpoint"]["name"] for evaluation in evaluations for metrics in evaluation.results.values()}
    names |= {run.record.get("inputs", {}).get("model", {}).get("name", "") for run in runs}
    models = {Path(name).name for name in names}
    benchmarks = {metrics["benchmark"] for evaluation in evaluations for metrics in evaluation.results.values()}
    published = yaml.safe_load(REFERENCES.read_text())
    return [entry for entry in published if entry["model"] in models and entry["benchmark"] in benchmarks]


@dataclass(frozen=True)
class Point:
    """An evaluation's place on a curve: its run, x (steps, or training examples) and its metrics."""

    line: str
    x: int
    evaluation: Evaluation


def curve_over_steps(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[Point]:
    """Checkpoints of one run by their step, the model it started from at 0; only runs with two points or more."""
    points = []
    for run in runs:
        found = {step: e for e in evaluations if (step := _step(e, run)) is not None}
        if len(found) > 1:
            points += [Point(run.label, step, found[step]) for step in sorted(found)]
    return points


def curve_over_sizes(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[Point]:
    """Final checkpoints by the rows they were trained on, for runs of one dataset and several sizes."""
    lines: dict[str, dict[int, Evaluation]] = {}
    for run, evaluation in itertools.product(runs, evaluations):
        dataset, steps = run.record.get("inputs", {}).get("dataset", {}), run.record.get("result", {}).get("steps")
        size = dataset.get("used", {}).get("train")
        step = _step(evaluation, run)
        if size and steps and step in (0, steps):
            lines.setdefault(dataset.get("path", ""), {})[size if step else 0] = evaluation
    return [
        Point(line, x, found[x]) for line, found in lines.items() if sum(map(bool, found)) > 1 for x in sorted(found)
    ]


def _step(evaluation: Evaluation, run: Run) -> int | None:
    """Steps of `run` that the evaluated weights have taken; 0 for the model it started from, None for another's."""
    checkpoint = next(iter(evaluation.results.values()))["checkpoint"]
    name = str(checkpoint["name"])
    if checkpoint.get("run_id") is not None and checkpoint["run_id"] == run.record.get("run_id"):
        match = CHECKPOINT.search(name)
        return int(match[1]) if match else run.record.get("result", {}).get("steps")
    return 0 if name == run.record.get("inputs", {}).get("model", {}).get("name") else None


@dataclass(frozen=True)
class Difference:
    """An evaluation against the first one on one set: the paired comparison, or why there is none."""

    title: str
    label: str
    comparison: Comparison | None
    adjusted_p: float | None
    refusal: str | None


def differences(evaluations: Sequence[Evaluation]) -> list[Difference]:
    """Every other evaluation against the first, wherever both were asked the same; Holm over all of them."""
    first, found = evaluations[0], []
    titles = question_sets(evaluations)
    for key, other in itertools.product(titles, evaluations[1:]):
        if key in first.results and key in other.results:
            try:
                found.append((key, other.label, compare(first.directories[key], other.directories[key]), None))
            except ComparisonError as error:
                found.append((key, other.label, None, str(error)))
    adjusted = iter(holm([comparison.p for _, _, comparison, _ in found if comparison]))
    return [
        Difference(titles[key], label, comparison, next(adjusted) if comparison else None, refusal)
        for key, label, comparison, refusal in found
    ]
