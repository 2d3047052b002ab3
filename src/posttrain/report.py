"""Reading finished evaluations and runs, and showing them: a table and one figure."""

import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from posttrain.errors import PosttrainError
from posttrain.lineage import METRICS_FILE as RUN_METRICS
from posttrain.results import METRICS_FILE

matplotlib.use("Agg")  # files only, no display
Evaluation = dict[str, dict[str, Any]]
COLOURS = ("#9aa5b1", "#2f6f9f", "#d98c2b", "#4c9f70", "#8e5ea2")


def read_evaluation(directory: Path) -> Evaluation:
    """Metrics by benchmark of one evaluated checkpoint; raises where nothing finished is there."""
    metrics = [json.loads(path.read_text()) for path in sorted(directory.glob(f"*/{METRICS_FILE}"))]
    if not metrics:
        raise PosttrainError(f"{directory}: holds no finished evaluation; write one with src/eval.py")
    return {entry["benchmark"]: entry for entry in metrics}


def read_run(directory: Path) -> list[dict[str, Any]]:
    """Logged steps of a run."""
    path = directory / RUN_METRICS
    if not path.is_file():
        raise PosttrainError(f"{path}: missing; expected the output directory of a training script")
    return [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]


def comparison_table(evaluations: dict[str, Evaluation]) -> str:
    """Accuracy with its interval of every checkpoint (columns) on every benchmark (rows)."""
    benchmarks = sorted({name for evaluation in evaluations.values() for name in evaluation})
    lines = ["".join([f"{'accuracy':<14}{'n':>6}", *(f"  {name:<24}" for name in evaluations)]).rstrip()]
    for benchmark in benchmarks:
        cells = [_cell(evaluation.get(benchmark)) for evaluation in evaluations.values()]
        n = max(evaluation[benchmark]["n"] for evaluation in evaluations.values() if benchmark in evaluation)
        lines.append("".join([f"{benchmark:<14}{n:>6}", *(f"  {cell:<24}" for cell in cells)]).rstrip())
    return "\n".join(lines)


def _cell(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "-"
    accuracy = metrics["accuracy"]
    return f"{accuracy['value']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}]"


def write_figure(evaluations: dict[str, Evaluation], runs: dict[str, list[dict[str, Any]]], out: Path) -> list[Path]:
    """Loss curves on the left, accuracies with 95 % intervals on the right; the same figure as SVG and PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_losses(left, runs)
    _draw_accuracies(right, evaluations)
    files = [out / "curves.svg", out / "curves.png"]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def _draw_losses(axes: Any, runs: dict[str, list[dict[str, Any]]]) -> None:
    for colour, (name, steps) in zip(itertools.cycle(COLOURS[1:]), runs.items(), strict=False):
        for key, style in (("loss", "-"), ("eval_loss", "o--")):
            points = [(step["step"], step[key]) for step in steps if key in step]
            label = f"{name}: {'training' if key == 'loss' else 'validation'}"
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label) if points else None
    axes.set(xlabel="step", ylabel="loss (nats per completion token)", yscale="log")
    axes.grid(alpha=0.3)
    if runs:
        axes.legend(frameon=False)


def _draw_accuracies(axes: Any, evaluations: dict[str, Evaluation]) -> None:
    benchmarks = sorted({name for evaluation in evaluations.values() for name in evaluation})
    width = 0.8 / len(evaluations)
    for position, (name, evaluation) in enumerate(evaluations.items()):
        offset = (position - (len(evaluations) - 1) / 2) * width
        places = [i + offset for i, benchmark in enumerate(benchmarks) if benchmark in evaluation]
        accuracies = [evaluation[b]["accuracy"] for b in benchmarks if b in evaluation]
        values = [100 * a["value"] for a in accuracies]
        errors = [
            [max(0, 100 * (a["value"] - a["low"])) for a in accuracies],
            [max(0, 100 * (a["high"] - a["value"])) for a in accuracies],
        ]
        axes.bar(places, values, width, yerr=errors, capsize=3, label=name, color=COLOURS[position % len(COLOURS)])
    axes.set_xticks(range(len(benchmarks)), benchmarks)
    axes.set(ylabel="accuracy in %, 95 % interval", ylim=(0, 105))
    axes.legend(frameon=False, loc="upper right")
