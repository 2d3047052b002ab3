"""Records of a declared benchmark, read and checked: the right number, no question twice, every gold readable."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.benchmarks import BenchmarkError
from posttrain.grading import Grader, Verdict
from posttrain.manifest import Source
from posttrain.rows import Row, chat_row

LICENCE = "as stated by the source"
Declaration = dict[str, Any]


def read_local(path: Path, declared: Declaration) -> tuple[list[dict[str, Any]], Source]:
    """Records of local JSON lines."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise BenchmarkError(f"{path}:{number}: expected a JSON object: {error}") from error
    return records, Source(id=declared["hub"], licence=LICENCE, sha256={path.name: atomic.sha256_file(path)})


def read_hub(declared: Declaration, revision: str | None) -> tuple[list[dict[str, Any]], Source]:
    """Records of the hub's dataset at a commit, which is looked up and recorded where none is given."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    name = declared["hub"]
    try:
        revision = HfApi().dataset_info(name, revision=revision).sha
        records = list(load_dataset(name, split=declared["split"], revision=revision))
    except Exception as error:  # the hub's client raises its HTTP library's errors, whichever that is today
        reason = " ".join(str(error).split())
        raise BenchmarkError(f"{name}: not read from the hub ({reason}); use --file with a local copy") from error
    return records, Source(id=name, licence=LICENCE, revision=revision)


def to_rows(records: list[dict[str, Any]], declared: Declaration, name: str) -> list[Row]:
    """Rows with the question as prompt and the gold as answer; a record without one names its number."""
    rows = []
    for number, record in enumerate(records, start=1):
        question, answer = record.get(declared["question"]), record.get(declared["answer"])
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
    golds = [row.answer for row in rows]
    with Grader() as grader:
        grades = grader.grade(golds, [f"\\boxed{{{gold}}}" for gold in golds], [False] * len(golds))
    for row, grade in zip(rows, grades, strict=True):
        if grade.verdict is not Verdict.CORRECT:
            question = row.prompt[0]["content"][:60]
            raise BenchmarkError(f"{source}: row {row.id}: bad gold {row.answer!r} ({grade.verdict}): {question!r}…")
