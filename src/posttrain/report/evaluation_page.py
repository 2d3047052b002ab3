"""The report's page, in the order a reader asks: is it better, how does it answer, what did training do, show me."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.report.content import (
    Evaluation,
    Run,
    curve_over_sizes,
    curve_over_steps,
    differences,
    question_sets,
    references,
)
from posttrain.report.figures import (
    draw_accuracy,
    draw_at_k,
    draw_budget,
    draw_curves,
    draw_lengths,
    draw_outcomes,
)
from posttrain.report.html_page import Drawing, write_page
from posttrain.report.measures import fifths, measures
from posttrain.report.memory_banks import BankEvaluation
from posttrain.report.questions import question_tables
from posttrain.report.training_figures import draw_training


def write_report(
    out: Path,
    title: str,
    evaluations: Sequence[Evaluation],
    runs: Sequence[Run],
    data_dir: Path,
    questions: int,
    memories: Sequence[BankEvaluation] = (),
) -> Path:
    """Write the page and its figures into `out`; returns the page's path. `questions` a benchmark, 0 for all."""
    published = references(evaluations, runs)
    training = [draw_training(out, f"training_{number}", run) for number, run in enumerate(runs, start=1)]
    return write_page(
        out,
        "report.html",
        title=title,
        evaluations=evaluations,
        memories=memories,
        runs=runs,
        sets=question_sets(evaluations),
        figures=_figures(out, evaluations, runs, published),
        training=[(run, drawing, rest) for run, (drawing, rest) in zip(runs, training, strict=True)],
        references=published,
        differences=differences(evaluations) if len(evaluations) > 1 else [],
        measures=measures(evaluations),
        by_length=by_length(evaluations),
        tables=question_tables(evaluations, data_dir, questions) if evaluations else [],
        settings=settings(evaluations),
    )


def _figures(
    out: Path, evaluations: Sequence[Evaluation], runs: Sequence[Run], published: list[dict[str, Any]]
) -> dict[str, Drawing | None]:
    if not evaluations:
        return dict.fromkeys(("accuracy", "steps", "sizes", "outcomes", "lengths", "budget", "pass", "maj"))
    steps, sizes = curve_over_steps(evaluations, runs), curve_over_sizes(evaluations, runs)
    return {
        "accuracy": draw_accuracy(out, evaluations, published),
        "steps": draw_curves(out, "over_steps", steps, "step", "Checkpoints of a run; 0 is the model it started from."),
        "sizes": draw_curves(
            out, "over_sizes", sizes, "training examples", "Runs by the number of rows they were trained on."
        ),
        "outcomes": draw_outcomes(out, evaluations),
        "lengths": draw_lengths(out, evaluations),
        "budget": draw_budget(out, evaluations),
        "pass": draw_at_k(out, evaluations, "pass_at_k"),
        "maj": draw_at_k(out, evaluations, "maj_at_k"),
    }


def by_length(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """A table for every set of questions on which any evaluation answered at more than one length."""
    tables = []
    for key, title in question_sets(evaluations).items():
        rows = [(e.label, fifths(e.results[key])) for e in evaluations if key in e.results]
        columns = max(len(found) for _, found in rows)
        if columns > 1:
            tables.append({"title": title, "columns": columns, "rows": [row for row in rows if row[1]]})
    return tables


def settings(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """How each evaluation asked; one line where it asked all its benchmarks alike, else one for each way."""
    lines: list[dict[str, Any]] = []
    for evaluation in evaluations:
        for key, metrics in evaluation.results.items():
            checkpoint, backend, decoding = metrics["checkpoint"], metrics["backend"], metrics["decoding"]
            line = {
                "label": evaluation.label,
                "checkpoint": checkpoint["name"],
                "run": checkpoint.get("run_id") or "",
                "rope": checkpoint.get("rope", {}).get("rope_theta", ""),
                "prompt": metrics["prompt"]["name"],
                "decoding": ", ".join(f"{k} {v}" for k, v in decoding.items() if k != "stop_token_ids"),
                "grader": " ".join(map(str, metrics["grader"].values())),
                "backend": " ".join(map(str, backend.values())),
            }
            known = next((other for other in lines if {**other, "sets": None} == {**line, "sets": None}), None)
            if known is None:
                lines.append({**line, "sets": [key.title]})
            else:
                known["sets"].append(key.title)
    return lines
