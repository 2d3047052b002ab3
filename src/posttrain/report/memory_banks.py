"""What an evaluation with several knowledge banks shows, as a figure of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from posttrain import jsonl
from posttrain.errors import PosttrainError
from posttrain.report.html_page import COLOURS, Drawing, distinct_labels, draw

FILE = "banks.json"
JUDGEMENTS = ("startswith", "letter", "likelihood")
RATE = {"value": float, "low": float, "high": float}
BANK = {**{name: (RATE, type(None)) for name in JUDGEMENTS}, "hit_rate": {str: RATE}}
SHAPE = {"banks": {str: BANK}, "usage": {str: dict}}


@dataclass(frozen=True)
class BankEvaluation:
    """One run of src/memory_eval.py: its summary by bank, and the figure of them."""

    label: str
    banks: dict[str, dict[str, Any]]
    usage: dict[str, dict[str, Any]]
    drawing: Drawing


def read_bank_evaluations(out: Path, directories: Sequence[Path]) -> list[BankEvaluation]:
    """Evaluations in the order given, their figures written into `out`; raises where one has no banks.json."""
    found = []
    for number, directory in enumerate(directories, start=1):
        value, label = read_banks(directory), distinct_labels(directories)[number - 1]
        drawing = draw_banks(out, f"banks_{number}", directory / FILE, value["banks"])
        found.append(BankEvaluation(label, value["banks"], value["usage"], drawing))
    return found


def read_banks(directory: Path) -> dict[str, Any]:
    """What banks.json says: `banks` and `usage`; raises PosttrainError where it is missing or damaged."""
    path, remedy = directory / FILE, "write it again with src/memory_eval.py"
    value = jsonl.read_object(path, SHAPE, remedy)
    if value is None:
        raise PosttrainError(f"{path}: missing; {remedy}")
    return value


def draw_banks(out: Path, name: str, source: Path, banks: dict[str, dict[str, Any]]) -> Drawing:
    """Accuracy by each judgement and the hit rate of each layer, one line a bank."""

    def paint(axes: Sequence[Axes]) -> None:
        series: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for place, bank in enumerate(banks.values()):
            rates = {key: bank[key] for key in JUDGEMENTS if bank[key]}
            rates |= {f"hits of layer {layer}": rate for layer, rate in bank["hit_rate"].items()}
            for key, rate in rates.items():
                series.setdefault(key, []).append((place, rate))
        for number, (key, points) in enumerate(series.items()):
            colour, offset = COLOURS[number % len(COLOURS)], 0.7 * (number + 0.5) / len(series) - 0.35
            for place, rate in points:
                axes[0].plot([100 * rate["low"], 100 * rate["high"]], [place + offset] * 2, color=colour)
            x, y = [100 * rate["value"] for _, rate in points], [place + offset for place, _ in points]
            axes[0].plot(x, y, "o", color=colour, label=key)
        axes[0].set(xlabel="share in %, 95 % interval", xlim=(-1, 101), yticks=range(len(banks)))
        axes[0].set_yticklabels([bank.replace("_", " ") for bank in banks])
        axes[0].invert_yaxis()
        axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(series))

    caption = "The same questions with each bank. Under “edited” what the bank states is right, elsewhere the truth."
    return draw(out, name, caption, [source], paint, (8, 1.2 + 0.7 * len(banks)))
