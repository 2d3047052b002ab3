"""A result of an older grader's rules, graded again from its own samples with those of today."""

from pathlib import Path
from typing import Any

from posttrain.evaluation.published_graders import make_grader
from posttrain.evaluation.results import read_samples, write_result
from posttrain.evaluation.samples import grade_leniently, vote
from posttrain.grading.grader import VERSION


def regrade(directory: Path) -> str | None:
    """Grade the samples again where another version of our rules graded them; what changed, in words, or None.

    Published graders have no versions here. Raises ResultError or DamageError where the result is not whole.
    """
    settings, old = read_samples(directory)
    used = settings["grader"]
    if used["name"] != "posttrain" or used.get("version") == VERSION:
        return None
    new = _graded(old, used.get("answer_tolerance"))
    changed = sum(a["verdict"] != b["verdict"] for a, b in zip(old, new, strict=True))
    write_result(directory, {**settings, "grader": {**used, "version": VERSION}}, new)
    return f"{directory}: graded by version {used.get('version')}, now by {VERSION}: {changed} of {len(new)} changed"


def _graded(samples: list[dict[str, Any]], answer_tolerance: dict[str, Any] | None) -> list[dict[str, Any]]:
    golds, texts = [sample["gold"] for sample in samples], [sample["completion"] for sample in samples]
    numbers = {row_id: number for number, row_id in enumerate(dict.fromkeys(sample["id"] for sample in samples))}
    with make_grader("posttrain", "box", answer_tolerance=answer_tolerance) as grader:
        grades = grader.grade(golds, texts, [sample["finish_reason"] == "length" for sample in samples])
        lenient = grade_leniently(grader, golds, texts, grades)
        votes = vote(grader, [numbers[sample["id"]] for sample in samples], grades)
    return [
        sample
        | {
            "answer": g.answer,
            "verdict": g.verdict.value,
            "correct_lenient": right,
            "vote": voted,
            "symbolic": g.symbolic,
        }
        for sample, g, right, voted in zip(samples, grades, lenient, votes, strict=True)
    ]
