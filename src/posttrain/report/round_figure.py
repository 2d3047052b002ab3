"""The curve of expert iteration: accuracy after every round, and what sampling found in it."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")  # files only, no display


def draw_rounds(records: list[dict[str, Any]], out: Path) -> list[Path]:
    """Accuracy with its 95 % interval on the left, what sampling found on the right; rounds.svg and rounds.png."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [record["round"] for record in records]
    benchmarks = [name for name in records[0]["evaluation"] if name != "all"]
    for name in benchmarks if len(benchmarks) > 1 else []:
        left.plot(numbers, [100 * r["evaluation"][name]["value"] for r in records], "-", alpha=0.4, label=name)
    every = [record["evaluation"]["all"] for record in records]
    errors = [[100 * max(0.0, a["value"] - a["low"]) for a in every], [100 * (a["high"] - a["value"]) for a in every]]
    left.errorbar(numbers, [100 * a["value"] for a in every], errors, marker="o", capsize=3, color="black", label="all")
    left.set(xlabel="round", ylabel="accuracy in %, 95 % interval", xticks=numbers, ylim=(0, 105))
    left.legend(frameon=False)
    sampled = [record for record in records if record["round"]]
    for key, label in (("accept_rate", "candidates accepted"), ("solved_rate", "questions with an accepted one")):
        values = [r[key] if key in r else r["questions_accepted"] / r["questions"] for r in sampled]
        right.plot([r["round"] for r in sampled], [100 * value for value in values], "o-", label=label)
    right.set(xlabel="round", ylabel="share in %", xticks=numbers[1:], ylim=(0, 105))
    if sampled:
        right.legend(frameon=False)
    return save(figure, out, "rounds")


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """A figure as SVG and PNG without a date or names made up by chance: the same figures are the same bytes."""
    files = [out / f"{name}.svg", out / f"{name}.png"]
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(files[0], dpi=120, metadata={"Date": None})
        figure.savefig(files[1], dpi=120)
    return files
