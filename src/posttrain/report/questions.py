"""The questions of a report with every evaluation's answers side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.data.benchmarks import DECLARATIONS, declarations
from posttrain.data.rows import QUESTIONS, read_parquet
from posttrain.evaluation.results import read_samples
from posttrain.grading.grader import Verdict
from posttrain.report.content import Evaluation, QuestionSet, question_sets

SAMPLES_OF_A_QUESTION = 4  # shown on the page


@dataclass(frozen=True)
class Answers:
    """What one evaluation answered to one question: samples as in samples.jsonl, and the share that is correct."""

    samples: list[dict[str, Any]]

    @property
    def share(self) -> float | None:
        if not self.samples:
            return None
        return sum(sample["verdict"] == Verdict.CORRECT for sample in self.samples) / len(self.samples)

    @property
    def verdicts(self) -> str:
        return " ".join(dict.fromkeys(sample["verdict"] for sample in self.samples))

    @property
    def shown(self) -> list[dict[str, Any]]:
        return self.samples[:SAMPLES_OF_A_QUESTION]


@dataclass(frozen=True)
class Question:
    """A question with each evaluation's answers, in the order of the evaluations."""

    id: str
    text: str | None
    gold: str
    answers: list[Answers]

    @property
    def outcome(self) -> tuple[str, ...]:
        """What became of it in every evaluation."""
        return tuple(answers.verdicts if answers.share in (0, 1, None) else "mixed" for answers in self.answers)


@dataclass(frozen=True)
class QuestionTable:
    """The questions of a set that the page shows, and how many there are."""

    key: QuestionSet
    title: str
    questions: list[Question]
    total: int
    without_text: str | None  # why the questions' texts are missing


def question_tables(evaluations: Sequence[Evaluation], data_dir: Path, limit: int) -> list[QuestionTable]:
    """Questions of every set, `limit` of each or all for 0, evenly over the outcomes they had."""
    tables = []
    for key, title in question_sets(evaluations).items():
        answers = [_answers(evaluation, key) for evaluation in evaluations]
        texts, missing = question_texts(key, evaluations, data_dir)
        ids = sorted({i for found in answers for i in found})
        questions = [
            Question(
                i, texts.get(i), next(found[i][0]["gold"] for found in answers if i in found),
                [Answers(found.get(i, [])) for found in answers],
            )
            for i in ids
        ]  # fmt: skip
        tables.append(QuestionTable(key, title, spread(questions)[: limit or None], len(questions), missing))
    return tables


def spread(questions: Sequence[Question]) -> list[Question]:
    """The questions so ordered that any beginning holds every outcome as evenly as can be; else by content hash."""
    ranks: Counter[tuple[str, ...]] = Counter()
    placed = []
    for question in sorted(questions, key=lambda question: question.id):
        placed.append((ranks[question.outcome], question.id, question))
        ranks[question.outcome] += 1
    return [question for _, _, question in sorted(placed, key=lambda place: place[:2])]


def _answers(evaluation: Evaluation, key: QuestionSet) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    if key in evaluation.directories:
        for sample in read_samples(evaluation.directories[key])[1]:
            answers.setdefault(sample["id"], []).append(sample)
    return answers


def question_texts(
    key: QuestionSet, evaluations: Sequence[Evaluation], data_dir: Path
) -> tuple[dict[str, str], str | None]:
    """Questions by id from the very file that was asked, or why they are not at hand."""
    benchmark = next(e.results[key]["benchmark"] for e in evaluations if key in e.results)
    declared = declarations().get(benchmark)
    if declared is None:
        return {}, f"{benchmark} is not declared in {DECLARATIONS.name}"
    path = data_dir / declared["file"]
    if not path.is_file():
        return {}, f"{path} is not there; name its directory by --data_dir"
    if atomic.sha256_file(path) != key.data_sha256:
        return {}, f"{path} is not the file that was asked: its digest differs"
    return {row["id"]: row["prompt"][-1]["content"] for row in read_parquet(path, QUESTIONS[:2])}, None
