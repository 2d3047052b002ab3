"""The figures of a run: everything it logged over steps, in panels."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from posttrain.lineage import METRICS_FILE
from posttrain.report.content import Run
from posttrain.report.figures import grid, hide_rest
from posttrain.report.html_page import Drawing, draw

# Panels in order: title, which logged keys, scale. Keys of one panel share its axis.
PANELS = (
    ("loss (nats per token)", r"(eval_)?loss", "log"),
    ("reward", r"reward|rewards/.*/mean|eval_reward|guard/accuracy|eval/.*/accuracy", "linear"),
    ("spread of rewards", r"reward_std|rewards/.*/std|frac_reward_zero_std", "linear"),
    ("completion length (tokens)", r"completions/(mean|mean_terminated|max)_length|eval/.*/tokens", "linear"),
    ("cut off", r"completions/clipped_ratio|eval/.*/truncation_rate", "linear"),
    ("outcomes (share)", r"verdict/.*", "linear"),
    ("format (share)", r"format/.*|eval/.*/format_rate", "linear"),
    ("entropy (nats)", r"(eval_)?entropy", "linear"),
    ("KL to the reference (nats)", r"kl|.*/kl", "linear"),
    ("clipped updates (share)", r"clip_ratio/.*_mean", "linear"),
    ("time of a step (share)", r"seconds/.*", "share"),
    ("tokens a second", r"tokens_per_second", "linear"),
    ("peak memory (GiB)", r"peak_memory_gib", "linear"),
    ("learning rate", r"learning_rate", "linear"),
    ("gradient norm", r"grad_norm", "linear"),
)


def draw_training(out: Path, name: str, run: Run) -> tuple[Drawing | None, list[str]]:
    """Everything logged over steps in panels, and the logged keys that no panel shows."""
    keys = dict.fromkeys(
        key for line in run.steps for key, value in line.items() if isinstance(value, int | float) and key != "step"
    )
    panels = [(title, [k for k in keys if re.fullmatch(p, k)], scale) for title, p, scale in PANELS]
    panels = [panel for panel in panels if panel[1]]
    shown = {key for _, found, _ in panels for key in found}
    if not panels:
        return None, list(keys)

    def paint(axes: Sequence[Axes]) -> None:
        for panel, (title, found, scale) in zip(axes, panels, strict=False):
            _paint_panel(panel, run.steps, found, scale)
            panel.set(title=title, xlabel="step")
            if len(found) > 1:
                panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2, handlelength=1.2)
        hide_rest(axes, len(panels))

    drawing = draw(out, name, f"Training of {run.label}.", [run.directory / METRICS_FILE], paint, *grid(len(panels)))
    return drawing, [key for key in keys if key not in shown]


def _paint_panel(panel: Axes, steps: list[dict[str, Any]], keys: list[str], scale: str) -> None:
    series = {key: [(line["step"], line[key]) for line in steps if _number(line.get(key))] for key in keys}
    if scale == "share":
        lines = [line for line in steps if all(_number(line.get(key)) for key in keys)]
        values = np.array([[line[key] for key in keys] for line in lines], dtype=float).reshape(-1, len(keys))
        totals = np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
        labels = [key.split("/")[-1] for key in keys]
        panel.stackplot([line["step"] for line in lines], (values / totals).T, labels=labels, alpha=0.75)
        panel.set_ylim(0, 1)
        return
    positive = all(value > 0 for points in series.values() for _, value in points)
    for key, points in series.items():
        style = "o--" if key.startswith(("eval", "guard")) else "-"
        if points:
            panel.plot(*zip(*points, strict=True), style, markersize=4, label=key)
    if scale == "log" and positive:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(LogFormatter())  # the usual one writes formulas
        panel.yaxis.set_minor_formatter(LogFormatter())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
