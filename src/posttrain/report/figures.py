"""The figures of a report. Each says which files its numbers came from."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from posttrain.evaluation.results import METRICS_FILE
from posttrain.grading.grader import Verdict
from posttrain.report.content import Evaluation, Point, QuestionSet, question_sets
from posttrain.report.html_page import COLOURS, Drawing, draw

VERDICT_COLOURS = {
    Verdict.CORRECT: "#4a9d6e", Verdict.WRONG: "#c0504d", Verdict.UNPARSED: "#d9a441", Verdict.TRUNCATED: "#8a97a6",
    Verdict.TIMEOUT: "#a0589c", Verdict.ERROR: "#5b4a72",
}  # fmt: skip
CURVES = (
    ("accuracy", lambda m: m["accuracy"]["value"]),
    ("in format", lambda m: m["format_rate"]),
    ("cut off", lambda m: m["truncation_rate"]),
    ("tokens, mean", lambda m: m["tokens"]["all"]["mean"] if m["tokens"]["all"] else math.nan),
)


def metrics_files(evaluations: Sequence[Evaluation]) -> list[Path]:
    return [directory / METRICS_FILE for e in evaluations for directory in e.directories.values()]


def draw_accuracy(out: Path, evaluations: Sequence[Evaluation], published: list[dict[str, Any]]) -> Drawing:
    """Accuracy of every checkpoint on every set with its 95 % interval; published scores as hollow diamonds."""
    sets = question_sets(evaluations)

    def paint(axes: Sequence[Axes]) -> None:
        places, labels = _lay_out(axes[0], sets, evaluations)
        for number, evaluation in enumerate(evaluations):
            for key, metrics in evaluation.results.items():
                estimate, y = metrics["accuracy"], places[key, evaluation.label]
                axes[0].plot([100 * estimate["low"], 100 * estimate["high"]], [y, y], color=COLOURS[number % 8])
                axes[0].plot(100 * estimate["value"], y, "o", color=COLOURS[number % 8], label=labels.pop(number, None))
        for key in sets:
            benchmark = next(e.results[key]["benchmark"] for e in evaluations if key in e.results)
            middle = np.mean([y for (k, _), y in places.items() if k == key])
            values = [entry["value"] for entry in published if entry["benchmark"] == benchmark]
            label = "published" if values and "published" not in axes[0].get_legend_handles_labels()[1] else None
            axes[0].plot(values, [middle] * len(values), "D", color="#7a8a99", fillstyle="none", label=label)
        axes[0].set(xlabel="accuracy in %, 95 % interval", xlim=(-1, 101))
        _legend_above(axes[0])

    caption = "Accuracy with its 95 % interval." + (" Diamonds: published scores, see the table." if published else "")
    return draw(out, "accuracy", caption, metrics_files(evaluations), paint, _height(sets, evaluations))


def draw_outcomes(out: Path, evaluations: Sequence[Evaluation]) -> Drawing:
    """Share of every outcome, as stacked bars that fill 100 %."""
    sets = question_sets(evaluations)

    def paint(axes: Sequence[Axes]) -> None:
        places, _ = _lay_out(axes[0], sets, evaluations, name_each=True)
        seen = set()
        for evaluation in evaluations:
            for key, metrics in evaluation.results.items():
                start = 0.0
                for verdict, colour in VERDICT_COLOURS.items():
                    width = 100 * metrics["counts"].get(verdict, 0) / max(1, metrics["n"])
                    if width:
                        label = None if verdict in seen else verdict.value
                        y = places[key, evaluation.label]
                        axes[0].barh(y, width, 0.8, left=start, color=colour, label=label)
                        seen.add(verdict)
                    start += width
        axes[0].set(xlabel="share of samples in %", xlim=(0, 100))
        axes[0].grid(visible=False)
        _legend_above(axes[0])

    return draw(
        out, "outcomes", "What became of every sample; nothing leaves the denominator.", metrics_files(evaluations),
        paint, _height(sets, evaluations),
    )  # fmt: skip


def draw_lengths(out: Path, evaluations: Sequence[Evaluation]) -> Drawing:
    """10th to 90th percentile of completion lengths with the median, and the 99th."""
    sets = question_sets(evaluations)

    def paint(axes: Sequence[Axes]) -> None:
        places, labels = _lay_out(axes[0], sets, evaluations)
        for number, evaluation in enumerate(evaluations):
            for key, metrics in evaluation.results.items():
                tokens, y, colour = metrics["tokens"]["all"], places[key, evaluation.label], COLOURS[number % 8]
                if tokens:
                    axes[0].plot([tokens["p10"], tokens["p90"]], [y, y], color=colour, linewidth=4, alpha=0.45)
                    axes[0].plot(tokens["p50"], y, "o", color=colour, label=labels.pop(number, None))
                    axes[0].plot(tokens["p99"], y, "|", color=colour, markersize=9)
        axes[0].set(xlabel="tokens: 10th to 90th percentile, median (dot), 99th (tick)", xscale="log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter("{x:,g}")
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        _legend_above(axes[0])

    caption = "Length of completions, without the prompt and the stop token."
    return draw(out, "lengths", caption, metrics_files(evaluations), paint, _height(sets, evaluations))


def _height(sets: dict[QuestionSet, str], evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    rows = sum(key in e.results for e in evaluations for key in sets)
    return 8.0, 1.4 + 0.24 * rows + 0.12 * len(sets)


def _lay_out(
    axes: Axes, sets: dict[QuestionSet, str], evaluations: Sequence[Evaluation], name_each: bool = False
) -> tuple[dict[tuple[QuestionSet, str], float], dict[int, str]]:
    """A line for every result, sets apart, named on the y axis; and the labels that the legend still needs."""
    places, ticks, y = {}, [], 0.0
    for key, title in sets.items():
        rows = [e.label for e in evaluations if key in e.results]
        for label in rows:
            places[key, label] = y
            y += 1
        if name_each:
            ticks += [(places[key, label], f"{title} · {label}") for label in rows]
        else:
            ticks.append((y - (len(rows) + 1) / 2, title))
        y += 0.6
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(y - 0.6, -1)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return places, {number: evaluation.label for number, evaluation in enumerate(evaluations)}


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderaxespad=0, handlelength=1.2, columnspacing=1.2)


def _legend_outside(axes: Sequence[Axes]) -> None:
    """One legend for all panels, above them, where it covers no line; the figure grows by its height."""
    figure = axes[0].get_figure()
    handles, labels = axes[0].get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.5 + 0.07 * max(map(len, labels)))))  # inches of a handle and of a letter
    figure.set_size_inches(width, height + 0.18 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=8, columnspacing=1.2)


def draw_at_k(out: Path, evaluations: Sequence[Evaluation], key_name: str) -> Drawing | None:
    """pass@k or maj@k over k with bootstrap intervals, a panel for each set; None where no result has any."""
    sets = {
        key: title for key, title in question_sets(evaluations).items()
        if any(e.results.get(key, {}).get(key_name) for e in evaluations)
    }  # fmt: skip
    if not sets:
        return None
    name = {"pass_at_k": "pass@k", "maj_at_k": "maj@k"}[key_name]

    def paint(axes: Sequence[Axes]) -> None:
        for panel, (key, title) in zip(axes, sets.items(), strict=False):
            for number, evaluation in enumerate(evaluations):
                found = evaluation.results.get(key, {}).get(key_name) or {}
                ks = sorted(map(int, found))
                low, mid, high = ([100 * found[str(k)][end] for k in ks] for end in ("low", "value", "high"))
                panel.plot(ks, mid, "o-", color=COLOURS[number % 8], label=evaluation.label, markersize=4)
                panel.fill_between(ks, low, high, color=COLOURS[number % 8], alpha=0.15, linewidth=0)
            panel.set(title=title, xlabel="k", ylabel=f"{name} in %", xscale="log", ylim=(0, 102))
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
        _legend_outside(axes)
        hide_rest(axes, len(sets))

    caption = f"{name}, unbiased, with bootstrap intervals over questions."
    return draw(out, key_name, caption, metrics_files(evaluations), paint, *grid(len(sets)))


def draw_budget(out: Path, evaluations: Sequence[Evaluation]) -> Drawing | None:
    """Share correct within so many tokens; None where no result has it or no answer is longer than one budget."""
    sets = {
        key: title for key, title in question_sets(evaluations).items()
        if any(len(e.results.get(key, {}).get("accuracy_within_budget") or {}) > 1 for e in evaluations)
    }  # fmt: skip
    if not sets:
        return None

    def paint(axes: Sequence[Axes]) -> None:
        for panel, (key, title) in zip(axes, sets.items(), strict=False):
            for number, evaluation in enumerate(evaluations):
                found = evaluation.results.get(key, {}).get("accuracy_within_budget") or {}
                budgets = sorted(map(int, found))
                values = [100 * found[str(budget)] for budget in budgets]
                panel.plot(budgets, values, "o-", color=COLOURS[number % 8], label=evaluation.label, markersize=4)
            panel.set(title=title, xlabel="tokens", ylabel="correct within in %", ylim=(0, 102))
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
        _legend_outside(axes)
        hide_rest(axes, len(sets))

    caption = "Share of samples that are correct and no longer than a budget."
    return draw(out, "budget", caption, metrics_files(evaluations), paint, *grid(len(sets)))


def draw_curves(out: Path, name: str, points: Sequence[Point], xlabel: str, caption: str) -> Drawing | None:
    """Accuracy, format, truncation and length over x, a line for each run and set; None without points.

    x is drawn in even steps with its values named, as sizes and checkpoints are often powers of two.
    """
    if not points:
        return None
    sets = question_sets([point.evaluation for point in points])
    ticks = sorted({point.x for point in points})

    def paint(axes: Sequence[Axes]) -> None:
        for panel, (title, measure) in zip(axes, CURVES, strict=True):
            lines = [(line, key) for line in dict.fromkeys(p.line for p in points) for key in sets]
            for number, (line, key) in enumerate(lines):
                found = [p for p in points if p.line == line and key in p.evaluation.results]
                xs = [ticks.index(p.x) for p in found]
                ys = [measure(p.evaluation.results[key]) for p in found]
                panel.plot(xs, ys, "o-", color=COLOURS[number % 8], markersize=4, label=f"{sets[key]} · {line}")
                if title == "accuracy":
                    ends = [[p.evaluation.results[key]["accuracy"][end] for p in found] for end in ("low", "high")]
                    panel.fill_between(xs, *ends, color=COLOURS[number % 8], alpha=0.12, linewidth=0)
            panel.set_xticks(range(len(ticks)), [f"{tick:,}" for tick in ticks])
            panel.set(title=title, xlabel=xlabel)
            panel.set_ylim(bottom=0)
        _legend_outside(axes)

    files = metrics_files([point.evaluation for point in points])
    return draw(out, name, caption, files, paint, (9, 6), (2, 2))


def grid(panels: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Size and shape of a figure of so many panels."""
    columns = min(3, panels)
    rows = -(-panels // columns)
    return (3.2 * columns + 0.6 if columns > 1 else 6.0, 2.5 * rows + 0.4 if columns > 1 else 3.6), (rows, columns)


def hide_rest(axes: Sequence[Axes], used: int) -> None:
    """Empty places of the grid behind the first `used` panels."""
    for panel in axes[used:]:
        panel.set_visible(False)
