"""Columns of the report's table of measures: what metrics.json holds beside the accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.console import interval, percent
from posttrain.report.content import Evaluation


@dataclass(frozen=True)
class Measure:
    """A column of the table of measures: its name, what it means, and where metrics.json holds it."""

    name: str
    meaning: str
    of: Callable[[dict[str, Any]], str]


def _rate(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda metrics: "" if metrics.get(key) is None else percent(metrics[key])


def _estimate(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda metrics: "" if metrics.get(key) is None else interval(metrics[key])


def _right_and_wrong(form: str) -> Callable[[dict[str, Any]], str]:
    """Counts of `format_by_correct` for `formatted` or `unformatted` answers."""

    def cell(metrics: dict[str, Any]) -> str:
        table = metrics.get("format_by_correct")
        return f"{table[f'{form}_correct']} / {table[f'{form}_incorrect']}" if table else ""

    return cell


# An absent key is an empty cell: results of older versions hold fewer figures.
MEASURES = (
    Measure("format", "share of answers in the prompt's format", _rate("format_rate")),
    Measure("cut off", "share that reached the token limit", _rate("truncation_rate")),
    Measure("strict", "correct and in the format", _estimate("accuracy_strict")),
    Measure("lenient", "correct where unmarked answers count too", _estimate("accuracy_lenient")),
    Measure("completed", "accuracy among those not cut off", _estimate("accuracy_completed")),
    Measure("in format", "samples in the prompt's format: right / wrong", _right_and_wrong("formatted")),
    Measure("not in format", "all other samples: right / wrong", _right_and_wrong("unformatted")),
    Measure("tokens", "mean length", lambda m: f"{m['tokens']['all']['mean']:.0f}" if m["tokens"]["all"] else ""),
)


def measures(evaluations: Sequence[Evaluation]) -> list[Measure]:
    """The measures that any of the results holds."""
    results = [metrics for evaluation in evaluations for metrics in evaluation.results.values()]
    return [measure for measure in MEASURES if any(measure.of(metrics) for metrics in results)]


@dataclass(frozen=True)
class Fifth:
    """Samples of like length: how many, the share of right ones, and their lengths as text."""

    n: int
    accuracy: float
    lengths: str


def fifths(metrics: dict[str, Any]) -> list[Fifth]:
    """Accuracy by length, shortest first. Where many samples are of one length, fewer than five hold any."""
    found = metrics.get("accuracy_by_length") or {"edges": [], "bins": []}
    edges = [f"{edge:.0f}" for edge in found["edges"]]
    return [
        Fifth(bin["n"], bin["accuracy"], start if start == end else f"{start}–{end}")
        for bin, start, end in zip(found["bins"], edges, edges[1:], strict=False)
        if bin["n"]
    ]
