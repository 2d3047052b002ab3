"""A result of an older grader's rules, graded again from its own samples with those of today."""

import json
from pathlib import Path
from typing import Any

from posttrain import atomic, digests, jsonl
from posttrain.evaluation.published_graders import make_grader
from posttrain.evaluation.results import SETTINGS_FILE, samples_path, write_samples
from posttrain.evaluation.samples import grade_leniently, vote
from posttrain.grading.grader import VERSION


def regrade(directory: Path) -> str | None:
    """Grade the samples again where another version of our rules graded them; what changed, in words, or None.

    The metrics are still those of before, and the directory has no mark until `rebuild` has written both.

    Published graders have no versions here, and a directory without settings or samples is left to `rebuild`.
    """
    settings_path, path = directory / SETTINGS_FILE, samples_path(directory)
    if not settings_path.is_file() or not path.is_file():
        return None
    settings = json.loads(settings_path.read_text())
    used = settings.get("grader", {})
    if used.get("name") != "posttrain" or used.get("version") == VERSION:
        return None
    remedy = f"remove {directory} and evaluate again"
    digests.check_files(directory, [SETTINGS_FILE, path.name], remedy)
    old = jsonl.read_lines(path, {}, remedy)
    new = _graded(old, used.get("answer_tolerance"))
    changed = sum(a["verdict"] != b["verdict"] for a, b in zip(old, new, strict=True))
    settings |= {"grader": {**used, "version": VERSION}}
    (directory / digests.MARK).unlink(missing_ok=True)  # of the old bytes: it would call the new ones damaged
    write_samples(path, new)
    atomic.write_json(settings_path, settings)
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
