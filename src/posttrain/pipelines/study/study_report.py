"""One report of a study: the curves of every cell from the base point, costs, and which differences are real."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from posttrain import atomic, lineage
from posttrain.evaluation.comparison import compare, holm, mcnemar
from posttrain.evaluation.estimates import in_percent, wilson_interval
from posttrain.evaluation.results import METRICS_FILE, read_metrics
from posttrain.pipelines.study.study import BASE, Study, evaluation_directory, points
from posttrain.report.round_figure import save

matplotlib.use("Agg")  # files only, no display
CURVES = {  # figure title: key of a point
    "accuracy in %": "accuracy",
    "format_accuracy in %": "format_accuracy",
    "trunc_rate in %": "trunc_rate",
    "avg_gen_len in tokens": "avg_gen_len",
}
SIGNIFICANT = 0.05  # family-wise, after Holm


def write_report(study: Study, out: Path) -> str:
    """`study.json`, `table.txt`, `table.md`, `curves.svg` and `curves.png` below `out`; returns the table."""
    base = read_point(evaluation_directory(study, BASE, 0))
    cells = {
        name: {
            "settings": settings,
            "points": {0: base, **{s: read_point(evaluation_directory(study, name, s)) for s in points(study, name)}},
            "cost": cost(Path(study.output_dir) / name),
        }
        for name, settings in study.cells().items()
    }
    differences = compare_cells(study)
    atomic.write_json(out / "study.json", {"study": vars(study), "cells": cells, "differences": differences})
    text = f"{cell_table(cells, base)}\n\n{difference_table(differences)}\n"
    atomic.write_bytes(out / "table.txt", text.encode())
    atomic.write_bytes(out / "table.md", markdown_table(cells, base).encode())
    draw(cells, out)
    return text


def read_point(directory: Path) -> dict[str, Any]:
    """Figures of all benchmarks together, under the names that the studies of GSM8K use."""
    metrics = [read_metrics(path.parent) for path in sorted(directory.glob(f"*/{METRICS_FILE}"))]
    n, correct = sum(m["n"] for m in metrics), sum(m["counts"]["correct"] for m in metrics)
    low, high = wilson_interval(correct, n)

    def mean(values: list[float]) -> float:
        return sum(m["n"] * value for m, value in zip(metrics, values, strict=True)) / n

    return {
        "n": n,
        "accuracy": correct / n,
        "low": low,
        "high": high,
        "format_accuracy": mean([m["format_rate"] for m in metrics]),
        "trunc_rate": mean([m["truncation_rate"] for m in metrics]),
        "avg_gen_len": mean([m["tokens"]["all"]["mean"] for m in metrics]),
    }


def cost(run: Path) -> dict[str, Any]:
    """What a cell's training took; tokens and steps are those of its own record."""
    result = (lineage.read_record(run) or {}).get("result") or {}
    spent = {key: result.get(key) for key in ("steps", "tokens_seen", "wall_seconds", "peak_memory_bytes")}
    return {**spent, "trainable_parameters": (result.get("effective") or {}).get("trainable_parameters")}


def compare_cells(study: Study) -> list[dict[str, Any]]:
    """Paired tests, over the questions of all benchmarks, of each cell with the base and with its neighbours.

    p is McNemar's exact one; Holm's correction is over all.
    """
    final = {name: evaluation_directory(study, name, max(points(study, name))) for name in study.cells()}
    pairs = [(BASE, name) for name in final] + list(neighbours(study))
    final[BASE] = evaluation_directory(study, BASE, 0)
    found = []
    for a, b in pairs:
        benchmarks = sorted(path.parent.name for path in final[a].glob(f"*/{METRICS_FILE}"))
        compared = [compare(final[a] / name, final[b] / name) for name in benchmarks]
        better, worse = sum(len(c.better) for c in compared), sum(len(c.worse) for c in compared)
        n = sum(c.questions for c in compared)
        entry = {"a": a, "b": b, "n": n, "difference": (better - worse) / n, "better": better, "worse": worse}
        found.append({**entry, "p": mcnemar(worse, better)})
    for entry, adjusted in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_holm"], entry["real"] = adjusted, adjusted < SIGNIFICANT
    return found


def neighbours(study: Study) -> list[tuple[str, str]]:
    """Pairs of cells that differ in one field, by one place in its list; of variants, the first and another."""
    if study.variants:
        first, *others = study.variants
        return [(first, other) for other in others]
    places = list(itertools.product(*(range(len(values)) for values in study.grid.values())))
    named = dict(zip(places, study.cells(), strict=True))
    return [
        (named[place], named[upper])
        for place in places
        for axis in range(len(place))
        if (upper := (*place[:axis], place[axis] + 1, *place[axis + 1 :])) in named
    ]


def cell_table(cells: dict[str, Any], base: dict[str, Any]) -> str:
    width = max(map(len, [BASE, *cells])) + 2
    heads = f"{'n':>6}  {'accuracy':<24}{'format':>8}{'trunc':>8}{'length':>8}{'steps':>7}{'tokens':>10}{'seconds':>9}"
    lines = [f"{'cell':<{width}}{heads}", _cell_line(BASE, width, base, {})]
    for name, cell in cells.items():
        lines.append(_cell_line(name, width, cell["points"][max(cell["points"])], cell["cost"]))
    return "\n".join(lines)


def _cell_line(name: str, width: int, point: dict[str, Any], spent: dict[str, Any]) -> str:
    interval = in_percent(point["accuracy"], point["low"], point["high"])
    costs = [spent.get(key) for key in ("steps", "tokens_seen", "wall_seconds")]
    steps, tokens, seconds = ("-" if value is None else f"{value:.0f}" for value in costs)
    return (
        f"{name:<{width}}{point['n']:>6}  {interval:<24}{point['format_accuracy']:>8.1%}{point['trunc_rate']:>8.1%}"
        f"{point['avg_gen_len']:>8.0f}{steps:>7}{tokens:>10}{seconds:>9}"
    )


def markdown_table(cells: dict[str, Any], base: dict[str, Any]) -> str:
    """Accuracy beside what it took, for a README."""
    rows = ["| | accuracy | trained parameters | peak memory | training |", "|---|---|---|---|---|"]
    for name, cell in {BASE: {"points": {0: base}, "cost": {}}, **cells}.items():
        point, spent = cell["points"][max(cell["points"])], cell["cost"]
        accuracy = in_percent(point["accuracy"], point["low"], point["high"])
        trained, memory, seconds = (
            spent.get(key) for key in ("trainable_parameters", "peak_memory_bytes", "wall_seconds")
        )
        costs = [f"{trained:,}", f"{memory / 2**20:,.0f} MiB", f"{seconds:.0f} s"] if spent else ["", "", ""]
        rows.append(f"| {name.replace('_', ' ')} | {accuracy} | {' | '.join(costs)} |")
    return "\n".join(rows) + "\n"


def difference_table(differences: list[dict[str, Any]]) -> str:
    """One line per comparison; `real` where Holm's p over all of them is below 0.05."""
    width = max(len(f"{d['a']} → {d['b']}") for d in differences) + 2
    lines = [f"{'accuracy, paired':<{width}}{'B − A':>8}{'flips':>13}{'p':>10}{'Holm p':>10}"]
    for d in differences:
        verdict = "  real" if d["real"] else ""
        pair, flips = f"{d['a']} → {d['b']}", f"+{d['better']} −{d['worse']}"
        figures = f"{d['difference']:>+8.1%}{flips:>13}{d['p']:>10.2g}{d['p_holm']:>10.2g}"
        lines.append(f"{pair:<{width}}{figures}{verdict}")
    return "\n".join(lines)


def draw(cells: dict[str, Any], out: Path) -> None:
    """Four curves over training steps, each from the base point at step 0."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (title, key) in zip(grid.flat, CURVES.items(), strict=True):
        share = 1 if key == "avg_gen_len" else 100
        for name, cell in cells.items():
            steps = sorted(cell["points"])
            axes.plot(steps, [share * cell["points"][s][key] for s in steps], "o-", markersize=3, label=name)
            if key == "accuracy":
                bounds = [[share * cell["points"][s][edge] for s in steps] for edge in ("low", "high")]
                axes.fill_between(steps, *bounds, alpha=0.12)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
    grid[0][0].legend(frameon=False, fontsize=7)
    save(figure, out, "curves")
