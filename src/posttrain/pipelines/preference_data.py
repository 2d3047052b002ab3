"""Pairs of a right and a wrong answer to one question, from a model's own verified samples.

A pair's `chosen` is a whole completion that the verifier found correct, its `rejected` a whole one that it found wrong.
What was cut off, unparsed or never graded is neither: a reward model would learn to tell lengths and boxes apart.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from posttrain import atomic, jsonl
from posttrain.data.manifest import Source, check_dataset, clear, split_path, write_manifest
from posttrain.data.rows import MESSAGES, by_content, read_parquet, row_id, write_table
from posttrain.errors import PosttrainError, check_writable
from posttrain.grading.grader import Grader, Verdict
from posttrain.locks import lock
from posttrain.pipelines.rollouts import ROLLOUTS_FILE, read_rollouts

SOURCE = "verified_samples"
COMMON = [("id", pa.string()), ("question_id", pa.string()), ("prompt", MESSAGES)]
PAIR_SCHEMA = pa.schema([*COMMON, ("chosen", MESSAGES), ("rejected", MESSAGES), ("answer", pa.string())])
OUTCOME_SCHEMA = pa.schema([*COMMON, ("completion", MESSAGES), ("outcome", pa.float32()), ("answer", pa.string())])
BUFFER_LINE = {  # of rejection_buffer.jsonl
    "example_id": str, "prompt": [dict], "ground_truth": str,
    "candidates": [{"text": str, "verdict": str, "finish_reason": str}],
}  # fmt: skip


class PreferenceError(PosttrainError):
    """Samples or a dataset of pairs that cannot be used."""


@dataclass(frozen=True)
class Judged:
    """A sampled completion and what the verifier said of it."""

    text: str
    verdict: str
    finish_reason: str

    @property
    def outcome(self) -> float | None:
        """1 for a whole right answer, 0 for a whole wrong one, None for anything else."""
        if self.finish_reason != "stop" or not self.text.strip():
            return None
        return {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0}.get(Verdict(self.verdict))


@dataclass(frozen=True)
class Asked:
    """A question with its gold and all samples of it."""

    id: str
    prompt: list[dict[str, str]]
    answer: str
    samples: list[Judged]

    def texts(self, outcome: float) -> list[str]:
        """Distinct completions of this outcome, in their order; equal up to white space is equal."""
        distinct = {" ".join(s.text.split()): s.text for s in reversed(self.samples) if s.outcome == outcome}
        return list(reversed(distinct.values()))


@dataclass(frozen=True)
class PairRow:
    """TRL's columns for preferences, conversational, with the gold that decided them."""

    id: str
    question_id: str
    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]
    answer: str


@dataclass(frozen=True)
class OutcomeRow:
    """One completion and whether it was right, for a value head."""

    id: str
    question_id: str
    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    outcome: float
    answer: str


def read_samples(path: Path) -> Iterator[Asked]:
    """Questions of a finished directory of src/sample.py, or of a rejection_buffer.jsonl."""
    if path.is_dir():
        for rollout in read_rollouts(path):
            judged = [Judged(c.text, c.verdict, c.finish_reason) for c in rollout.candidates]
            yield Asked(rollout.id, rollout.prompt, rollout.gold, judged)
        return
    for entry in jsonl.read_lines(
        path, BUFFER_LINE, "expected a directory of src/sample.py or a rejection_buffer.jsonl"
    ):
        judged = [Judged(c["text"], c["verdict"], c["finish_reason"]) for c in entry["candidates"]]
        yield Asked(entry["example_id"], entry["prompt"], entry["ground_truth"], judged)


def merge(questions: Iterable[Asked]) -> list[Asked]:
    """One entry per question, with the samples of all directories; raises where they disagree about the gold."""
    merged: dict[str, Asked] = {}
    for asked in questions:
        known = merged.setdefault(asked.id, Asked(asked.id, asked.prompt, asked.answer, []))
        if known.answer != asked.answer:
            raise PreferenceError(f"question {asked.id}: has two golds, {known.answer!r} and {asked.answer!r}")
        known.samples.extend(asked.samples)
    return list(merged.values())


def pairs_of(asked: Asked, limit: int | None) -> list[PairRow]:
    """Right with wrong answers of a question in turn, until each distinct one was used, at most `limit`."""
    right, wrong = asked.texts(1.0), asked.texts(0.0)
    question = [message["content"] for message in asked.prompt]
    n = max(len(right), len(wrong)) if right and wrong else 0
    return [
        PairRow(
            row_id(*question, right[i % len(right)], wrong[i % len(wrong)]),
            asked.id, asked.prompt, _said(right[i % len(right)]), _said(wrong[i % len(wrong)]), asked.answer,
        )
        for i in range(n if limit is None else min(n, limit))
    ]  # fmt: skip


def outcomes_of(asked: Asked) -> list[OutcomeRow]:
    """Every sample that is right or wrong, repeated ones too: their share is what a value predicts."""
    graded = [(sample.text, sample.outcome) for sample in asked.samples if sample.outcome is not None]
    question = [message["content"] for message in asked.prompt]
    return [
        OutcomeRow(row_id(*question, text, str(i)), asked.id, asked.prompt, _said(text), outcome, asked.answer)
        for i, (text, outcome) in enumerate(graded)
    ]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write_pairs(paths: list[Path], out: Path, validation: int, limit: int | None) -> dict[str, Any]:
    """Write pairs of the samples in `paths`; `validation` questions are held out whole. Returns the counts."""
    questions = merge(asked for path in paths for asked in read_samples(path))
    dropped = Counter(_why_no_pair(asked) for asked in questions)
    usable = [asked for asked in questions if _why_no_pair(asked) is None]
    splits = {name: [pair for a in part for pair in pairs_of(a, limit)] for name, part in _split(usable, validation)}
    return _write(out, splits, PAIR_SCHEMA, paths, {k: n for k, n in dropped.items() if k})


def write_outcomes(paths: list[Path], out: Path, validation: int) -> dict[str, Any]:
    """Write every right and wrong sample with its outcome; `validation` questions are held out whole."""
    questions = merge(asked for path in paths for asked in read_samples(path))
    splits = {name: [row for a in part for row in outcomes_of(a)] for name, part in _split(questions, validation)}
    neither = sum(sample.outcome is None for asked in questions for sample in asked.samples)
    return _write(out, splits, OUTCOME_SCHEMA, paths, {"neither_right_nor_wrong": neither})


def _why_no_pair(asked: Asked) -> str | None:
    if not asked.texts(1.0):
        return "no_right_answer"
    return None if asked.texts(0.0) else "no_wrong_answer"


def _split(questions: list[Asked], validation: int) -> list[tuple[str, list[Asked]]]:
    """Train and validation questions, held out by content and never by row: pairs of a question share its answers."""
    if questions and validation >= len(questions):
        raise PreferenceError(
            f"--validation {validation}: takes all {len(questions)} questions and leaves none to train on; lower it"
        )
    held = {entry["id"] for entry in by_content([{"id": asked.id} for asked in questions], validation)}
    train = [asked for asked in questions if asked.id not in held]
    return [("train", train), *([("validation", [asked for asked in questions if asked.id in held])] if held else [])]


def _write(
    out: Path, splits: dict[str, list[Any]], schema: pa.Schema, paths: list[Path], dropped: dict[str, int]
) -> dict[str, Any]:
    for split, rows in splits.items():
        if not rows:
            raise PreferenceError(
                f"{out}: split {split} would have no rows; left out: {dropped}; sample more candidates"
            )
    check_writable(out)
    lock(out)
    clear(out)
    for split, rows in splits.items():
        write_table(out / f"{split}.parquet", pa.Table.from_pylist([asdict(row) for row in rows], schema=schema))
    files = [path / ROLLOUTS_FILE if path.is_dir() else path for path in paths]
    source = Source(
        SOURCE, "that of the questions and of the model", None, {str(f): atomic.sha256_file(f) for f in files}
    )
    counts = {"kept": {split: len(rows) for split, rows in splits.items()}, "dropped": dropped}
    counts["questions"] = {split: len({row.question_id for row in rows}) for split, rows in splits.items()}
    facts = {"columns": schema.names, "seed": None, "counts": counts, "tokens": None, "decontamination": None}
    return write_manifest(out, [out / f"{split}.parquet" for split in splits], source, facts)["counts"]


def audit_pairs(directory: Path) -> int:
    """Grade every pair anew; the number of pairs, or PreferenceError naming those that are not right over wrong."""
    manifest = check_dataset(directory)
    paths = [split_path(directory, manifest, Path(name).stem) for name in manifest["files"]]
    rows = [row for path in paths for row in read_parquet(path, ("id", "answer", "chosen", "rejected"))]
    golds, n = [row["answer"] for row in rows], len(rows)
    texts = [row[side][-1]["content"] for side in ("chosen", "rejected") for row in rows]
    with Grader() as grader:
        grades = grader.grade([*golds, *golds], texts, [False] * (2 * n))
    faulty = [
        row["id"]
        for row, chosen, rejected in zip(rows, grades[:n], grades[n:], strict=True)
        if (chosen.verdict, rejected.verdict) != (Verdict.CORRECT, Verdict.WRONG)
    ]
    if faulty:
        raise PreferenceError(
            f"{directory}: {len(faulty)} of {n} pairs are not right over wrong: {', '.join(faulty[:5])}"
        )
    return n
