"""Columns of the report's table of measures: what metrics.json holds beside the accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.content import Evaluation
from posttrain.report.html_page import interval, percent


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


def _format_cell(metrics: dict[str, Any], cell: str) -> str:
    table = metrics.get("format_by_correct") or {}
    return str(table.get(cell, ""))


# An absent key is an empty cell: results of older versions hold fewer figures.
MEASURES = (
    Measure("format", "share of answers in the prompt's format", _rate("format_rate")),
    Measure("cut off", "share that reached the token limit", _rate("truncation_rate")),
    Measure("strict", "correct and in the format", _estimate("accuracy_strict")),
    Measure("lenient", "correct where unmarked answers count too", _estimate("accuracy_lenient")),
    Measure("completed", "accuracy among those not cut off", _estimate("accuracy_completed")),
    Measure("right, formatted", "samples", lambda m: _format_cell(m, "formatted_correct")),
    Measure("wrong, formatted", "samples", lambda m: _format_cell(m, "formatted_incorrect")),
    Measure("right, unformatted", "samples", lambda m: _format_cell(m, "unformatted_correct")),
    Measure("wrong, unformatted", "samples", lambda m: _format_cell(m, "unformatted_incorrect")),
    Measure("tokens", "mean length", lambda m: f"{m['tokens']['all']['mean']:.0f}" if m["tokens"]["all"] else ""),
)


def measures(evaluations: Sequence[Evaluation]) -> list[Measure]:
    """The measures that any of the results holds."""
    results = [metrics for evaluation in evaluations for metrics in evaluation.results.values()]
    return [measure for measure in MEASURES if any(measure.of(metrics) for metrics in results)]
