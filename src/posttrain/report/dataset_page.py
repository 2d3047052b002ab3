"""One page on a prepared dataset: what was dropped and why, how long its rows are, how they pack, and some of them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from transformers import PreTrainedTokenizerBase

from posttrain.data.manifest import NAME
from posttrain.data.rows import read_parquet
from posttrain.report.dataset_rows import Piece, Split, pieces
from posttrain.report.html_page import COLOURS, Drawing, draw, write_page

ROWS_SHOWN = 20
EXTREMES_SHOWN = 3  # longest, and as many shortest
DROPPED_SHOWN = 3  # for each reason
DRAWN_BUDGET = 4  # times the longest row; a line farther away would squeeze the histogram
DROPPED_FILE = "dropped.parquet"
# What a gold answer looks like, the first pattern that fits.
ANSWER_TYPES = {
    "none": r"",
    "integer": r"[+-]?\d{1,3}(,\d{3})+|[+-]?\d+",
    "decimal": r"[+-]?\d*\.\d+",
    "fraction": r"[+-]?(\d+\s*/\s*\d+|\\[dt]?frac\{?\d+\}?\{?\d+\}?)",
    "choice": r"\(?[A-H]\)?|\\text\{\(?[A-H]\)?\}",
    "percent or degrees": r".*(\\?%|\^\{?\\circ\}?)",
    "tuple, set or interval": r"(\\left)?[(\[{\\].*,.*[)\]}]",
    "equation": r".*=.*",
    "text": r"\\text\{.*\}|[A-Za-z ,.'-]{2,}",
    "expression": r".*",
}


@dataclass(frozen=True)
class Shown:
    """A row on the page."""

    split: str
    id: str
    tokens: int
    question: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Packing:
    """How rows of `tokens` in all fill rows of `budget` tokens, packed best fit first, and one a row."""

    budget: int
    rows: int
    tokens: int
    packed_rows: int
    too_long: int

    @property
    def packed(self) -> float:
        return self.tokens / (self.packed_rows * self.budget) if self.packed_rows else 0.0

    @property
    def alone(self) -> float:
        return self.tokens / (self.rows * self.budget) if self.rows else 0.0


def answer_type(answer: str) -> str:
    """The kind of a gold answer, by its look."""
    text = answer.strip().strip("$").strip()[:200]
    return next(name for name, pattern in ANSWER_TYPES.items() if re.fullmatch(pattern, text, re.DOTALL))


def measure_packing(split: Split, budget: int) -> Packing:
    """Pack the rows that fit `budget` with TRL's own best-fit-decreasing, as training does."""
    from posttrain.data.packing import pack

    fits = split.lengths <= budget
    chosen = split.ids.select(np.flatnonzero(fits)).with_format(None).select_columns(["input_ids"])
    packed = len(pack(chosen, budget)) if len(chosen) else 0
    return Packing(budget, int(fits.sum()), int(split.lengths[fits].sum()), packed, int((~fits).sum()))


def default_budget(manifest: dict[str, Any], splits: Sequence[Split]) -> int:
    """The budget the rows were filtered by, else the power of two that holds the longest row."""
    longest = max(int(split.lengths.max()) for split in splits)
    return (manifest.get("filters") or {}).get("max_tokens") or 1 << (longest - 1).bit_length()


def write_data_report(
    out: Path, directory: Path, manifest: dict[str, Any], splits: list[Split], tokenizer: PreTrainedTokenizerBase,
    prompt: str, budget: int,
) -> Path:  # fmt: skip
    """Write the page and its figures into `out`; returns the page's path."""
    train = next((split for split in splits if split.name == "train"), splits[0])
    by_hash = sorted(range(len(train.rows)), key=lambda i: train.rows[i]["id"])[:ROWS_SHOWN]
    by_length = np.argsort(train.lengths, kind="stable")
    show = lambda order: [_show(train, int(i), tokenizer) for i in order]  # noqa: E731
    questions = Counter(_question(row) for row in train.rows)
    return write_page(
        out,
        "data.html",
        title=directory.name,
        manifest=manifest,
        prompt=prompt,
        tokenizer=tokenizer.name_or_path,
        budget=budget,
        splits=[(split, summary(split, budget)) for split in splits],
        train=train,
        figures=_figures(out, directory, manifest, splits, train, budget),
        packing=measure_packing(train, budget),
        repeated=sum(n for n in questions.values() if n > 1),
        distinct=len(questions),
        dropped=dropped_examples(directory),
        samples=show(by_hash),
        longest=show(by_length[::-1][:EXTREMES_SHOWN]),
        shortest=show(by_length[:EXTREMES_SHOWN]),
    )


def summary(split: Split, budget: int) -> dict[str, float]:
    """Figures of a split's lengths in tokens."""
    percentiles = {f"p{p}": float(np.percentile(split.lengths, p)) for p in (50, 90, 99)}
    sizes = {"rows": len(split.rows), "tokens": int(split.lengths.sum()), "mean": float(split.lengths.mean())}
    return {**sizes, **percentiles, "max": int(split.lengths.max()), "over": int((split.lengths > budget).sum())}


def dropped_examples(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """A few dropped rows for each reason, where the dataset was made with --keep-dropped."""
    found: dict[str, list[dict[str, Any]]] = {}
    path = directory / DROPPED_FILE
    for row in read_parquet(path, ("reason",)) if path.is_file() else ():
        examples = found.setdefault(row["reason"], [])
        if len(examples) < DROPPED_SHOWN:
            turns = [*(row["prompt"] or []), *(row["completion"] or [])]
            text = "\n\n".join(str(turn["content"]) for turn in turns)
            examples.append({"id": row["id"], "tokens": row["n_tokens"], "detail": row["detail"], "text": text})
    return found


def _show(split: Split, index: int, tokenizer: PreTrainedTokenizerBase) -> Shown:
    row = split.rows[index]
    return Shown(split.name, row["id"], int(split.lengths[index]), _question(row), pieces(split, index, tokenizer))


def _question(row: dict[str, Any]) -> str:
    return row["text"] if "text" in row else row["prompt"][-1]["content"]


def _figures(
    out: Path, directory: Path, manifest: dict[str, Any], splits: list[Split], train: Split, budget: int
) -> dict[str, Drawing | None]:
    dropped = {name.replace("_", " "): n for name, n in manifest["counts"]["dropped"].items() if n}
    types = Counter(answer_type(row["answer"] or "") for row in train.rows) if "answer" in train.rows[0] else Counter()
    return {
        "lengths": _draw_lengths(out, splits, budget),
        "dropped": _draw_bars(out, "dropped", "Rows left out, by reason.", directory / NAME, dropped),
        "answers": _draw_bars(out, "answers", "Gold answers by their look.", train.path, dict(types.most_common())),
    }


def _draw_lengths(out: Path, splits: list[Split], budget: int) -> Drawing:
    longest = max(int(split.lengths.max()) for split in splits)

    def paint(axes: Sequence[Axes]) -> None:
        edges = np.linspace(0, max(longest, 1) + 1, 61)
        order = sorted(splits, key=lambda split: -len(split.rows))
        values = [split.lengths for split in order]
        names = [f"{split.name} ({len(split.rows):,})" for split in order]
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(order))]
        axes[0].hist(values, edges, stacked=True, label=names, color=colours)
        if budget <= DRAWN_BUDGET * longest:
            axes[0].axvline(budget, color="#c0504d", linestyle="--", label=f"budget {budget:,}")
        axes[0].set(xlabel="tokens of prompt and completion, as training sees them", ylabel="rows")
        axes[0].legend()

    beyond = "" if budget <= DRAWN_BUDGET * longest else f" The budget of {budget:,} lies far to the right."
    return draw(out, "lengths", f"Lengths of rows.{beyond}", [split.path for split in splits], paint)


def _draw_bars(out: Path, name: str, caption: str, source: Path, counts: dict[str, int]) -> Drawing | None:
    """Horizontal bars with their numbers, in the order given; None where there is nothing."""
    if not counts:
        return None

    def paint(axes: Sequence[Axes]) -> None:
        axes[0].barh(list(counts), list(counts.values()), 0.7, color=COLOURS[0])
        axes[0].bar_label(axes[0].containers[0], labels=[f"{n:,}" for n in counts.values()], padding=4)
        axes[0].set(xlabel="rows")
        axes[0].margins(x=0.12)
        axes[0].invert_yaxis()
        axes[0].grid(visible=False, axis="y")

    return draw(out, name, caption, [source], paint, (8, 1.1 + 0.3 * len(counts)))
