"""Samples with their grades: the lines of samples.jsonl, from which every figure of metrics.json can be made again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain.data.prompts import declared_prompt, prompt_hash
from posttrain.generation.sample import Sample
from posttrain.grading.formats import in_form, in_published_form
from posttrain.grading.grader import Grade, Grader, Verdict


def grade_samples(
    rows: list[dict[str, Any]], prompt_texts: list[str], samples: list[Sample], grader: Grader, prompt: str
) -> list[dict[str, Any]]:
    """Lines of samples.jsonl in the order of `index`, which counts all questions once, then all of them again."""
    samples = sorted(samples, key=lambda sample: sample.index)
    n, form = len(rows), declared_prompt(prompt).form
    golds = [rows[sample.index % n]["answer"] for sample in samples]
    texts = [sample.text for sample in samples]
    grades = grader.grade(golds, texts, [sample.finish_reason == "length" for sample in samples])
    lenient = grade_leniently(grader, golds, texts, grades)
    votes = vote(grader, [sample.index % n for sample in samples], grades)
    return [
        {
            "id": rows[sample.index % n]["id"],
            "sample": sample.index // n,
            "prompt_hash": prompt_hash(prompt_texts[sample.index % n]),
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "tokens": sample.tokens,
            "format": in_form(form, sample.text),
            "format_compat": in_published_form(form, sample.text),
            "answer": graded.answer,
            "gold": gold,
            "verdict": graded.verdict.value,
            "correct_lenient": correct_lenient,
            "vote": voted,
            "symbolic": graded.symbolic,
        }
        for sample, gold, graded, correct_lenient, voted in zip(samples, golds, grades, lenient, votes, strict=True)
    ]


def grade_leniently(grader: Grader, golds: Sequence[str], texts: Sequence[str], grades: Sequence[Grade]) -> list[bool]:
    """Which samples are correct when an answer that nothing marks counts too, its last formula or number."""
    unmarked = [i for i, grade in enumerate(grades) if grade.answer is None]
    again = grader.grade([golds[i] for i in unmarked], [texts[i] for i in unmarked], [False] * len(unmarked), True)
    found = list(grades)
    for i, grade in zip(unmarked, again, strict=True):
        found[i] = grade
    return [grade.verdict is Verdict.CORRECT for grade in found]


def vote(grader: Grader, questions: Sequence[int], grades: Sequence[Grade]) -> list[int | None]:
    """The class of equal answers that each sample votes for within its question."""
    members: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        members.setdefault(question, []).append(place)
    votes: list[int | None] = [None] * len(grades)
    classes = grader.votes([[grades[place] for place in places] for places in members.values()])
    for places, found in zip(members.values(), classes, strict=True):
        for place, number in zip(places, found, strict=True):
            votes[place] = number
    return votes


class GradeAhead:
    """Grades samples in a thread while others are still being generated; the grader remembers what needed algebra."""

    def __init__(self, grader: Grader, rows: list[dict[str, Any]]) -> None:
        self.grader, self.rows = grader, rows
        self.thread = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> "GradeAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def submit(self, sample: Sample) -> None:
        gold = self.rows[sample.index % len(self.rows)]["answer"]
        self.thread.submit(self.grader.grade, [gold], [sample.text], [sample.finish_reason == "length"])

    def finish(self) -> None:
        """Wait until all are graded."""
        self.thread.shutdown()
