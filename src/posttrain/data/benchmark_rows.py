"""Records of a declared benchmark, checked: the right number, no question twice, every gold readable."""

from collections import Counter
from typing import Any

from posttrain.data.benchmarks import BenchmarkError
from posttrain.data.rows import Row, chat_row
from posttrain.grading.grader import Grader, Verdict

Declaration = dict[str, Any]


def to_rows(records: list[dict[str, Any]], declared: Declaration, name: str) -> list[Row]:
    """Rows with the question as prompt and the gold as answer; a record without one names its number."""
    rows = []
    for number, record in enumerate(records, start=1):
        question, answer = record.get(declared["question"]), record.get(declared["answer"])
        if isinstance(answer, list):
            answer = ", ".join(map(str, answer))
        if not isinstance(question, str) or not question.strip() or not isinstance(answer, str | int | float):
            raise BenchmarkError(
                f"{name}: record {number}: expected text in {declared['question']!r} and a gold in "
                f"{declared['answer']!r}, found columns {', '.join(record)}"
            )
        rows.append(chat_row(question.strip(), "", str(answer).strip(), f"{declared['hub']}/{declared['split']}"))
    return rows


def check_rows(rows: list[Row], declared: Declaration, source: str) -> None:
    """Raise where the set is not the declared one, or the grader could not score it."""
    if len(rows) != declared["n"]:
        raise BenchmarkError(f"{source}: {len(rows)} questions, expected {declared['n']}; it is another set")
    repeated = [row_id for row_id, times in Counter(row.id for row in rows).items() if times > 1]
    if repeated:
        raise BenchmarkError(f"{source}: the question of row {repeated[0]} comes twice")
    check_golds(rows, source)


def check_golds(rows: list[Row], source: str) -> None:
    """Raise BenchmarkError for the first gold that the grader does not find equal to itself as an answer."""
    golds = [row.answer for row in rows]
    with Grader() as grader:
        grades = grader.grade(golds, [f"\\boxed{{{gold}}}" for gold in golds], [False] * len(golds))
    for row, grade in zip(rows, grades, strict=True):
        if grade.verdict is not Verdict.CORRECT:
            question = row.prompt[0]["content"][:60]
            raise BenchmarkError(f"{source}: row {row.id}: bad gold {row.answer!r} ({grade.verdict}): {question!r}…")
