"""What a study of batch sizes found: a table, and a heat map with the plan's number beside every measured one."""

import math
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.pipelines.study.batch_size import name_of
from posttrain.plan.memory.process import gib

TABLE, PICTURE = "table.md", "heat_map.svg"


def write_results(results: list[dict[str, Any]], output_dir: Path) -> str:
    """Write both; returns the table."""
    text = table(results)
    atomic.write_bytes(output_dir / TABLE, text.encode())
    draw(results, output_dir / PICTURE)
    return text


def table(results: list[dict[str, Any]]) -> str:
    """A row for every cell in Markdown."""
    axes = list(results[0]["cell"])
    head = [*axes, "largest", "peak there", "planned"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for result in results:
        cell = [Path(str(v)).stem if axis == "recipe" else str(v) for axis, v in result["cell"].items()]
        peak = gib(result["peak"]) if result["peak"] else "–"
        lines.append(f"| {' | '.join([*cell, str(result['rows']), peak, str(result['planned'])])} |")
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A picture: a column for every length, a row for every other setting, the colour by the number of rows."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(result["cell"]["length"] for result in results))
    rest = [{axis: v for axis, v in result["cell"].items() if axis != "length"} for result in results]
    settings = list(dict.fromkeys(name_of(cell) for cell in rest))
    found = {(name_of(cell), r["cell"]["length"]): r for cell, r in zip(rest, results, strict=True)}
    figure = Figure(figsize=(2.6 + 1.3 * len(lengths) + 2.4, 1.2 + 0.5 * len(settings)), layout="constrained")
    axes = figure.subplots()
    values = [[math.log2(1 + found[setting, length]["rows"]) for length in lengths] for setting in settings]
    axes.imshow(values, cmap="YlGn", vmin=0, aspect="auto")
    highest = max(map(max, values))
    for y, setting in enumerate(settings):
        for x, length in enumerate(lengths):
            result, dark = found[setting, length], values[y][x] > 0.7 * highest
            text = f"{result['rows']} (plan {result['planned']})"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "#222222")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(settings)), [wrapped(setting) for setting in settings], fontsize=7)
    axes.set(xlabel="tokens of a row", title="largest micro-batch, measured (planned)")
    figure.savefig(path, metadata={"Date": None})


def wrapped(setting: str) -> str:
    """A long name on two lines."""
    words = setting.split(", ")
    half = (len(words) + 1) // 2
    return "\n".join(", ".join(part) for part in (words[:half], words[half:]) if part)
