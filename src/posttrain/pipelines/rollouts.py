"""Verified samples of a model, one line per question: kept as they come, whole once `metrics.json` is there."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic, digests, jsonl
from posttrain.data.rows import by_content, row_id
from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import pass_at_k
from posttrain.evaluation.results import METRICS_FILE, SETTINGS_FILE
from posttrain.evaluation.scoring import at_ks
from posttrain.generation.sample import Sample
from posttrain.grading.grader import Grader, Verdict

PARTIAL_FILE = "rollouts.partial.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
UNFINISHED = f"has no {METRICS_FILE}; start its src/sample.py command again to finish it"
MAYBE_NUMBER, MAYBE_TEXT = (float, type(None)), (str, type(None))
CANDIDATE = {
    "text": str, "tokens": int, "finish_reason": {"stop", "length"}, "answer": MAYBE_TEXT,
    "verdict": {verdict.value for verdict in Verdict}, "logprob": MAYBE_NUMBER, "entropy": MAYBE_NUMBER,
}  # fmt: skip
ROLLOUT = {"id": str, "prompt": [{"role": str, "content": str}], "gold": str, "candidates": [CANDIDATE]}
METRICS = {
    "questions": int, "solved": int, "candidates": int, "counts": {str: int}, "correct_rate": float,
    "tokens_per_candidate": float, "logprob": MAYBE_NUMBER, "entropy": MAYBE_NUMBER,
}  # fmt: skip


class RolloutError(PosttrainError):
    """A directory of rollouts that is unfinished, damaged, or of other settings."""


@dataclass(frozen=True)
class Question:
    """What is asked, as chat messages, and its gold answer. The id hashes all messages, never a solution."""

    id: str
    prompt: list[dict[str, str]]
    answer: str


@dataclass(frozen=True)
class Candidate:
    """One verified completion. `logprob` and `entropy` are means over its tokens in nats, or None: not measured."""

    text: str
    tokens: int
    finish_reason: str
    answer: str | None
    verdict: str
    logprob: float | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class Rollout:
    """A question with all its candidates, in the order of their index."""

    id: str
    prompt: list[dict[str, str]]
    gold: str
    candidates: list[Candidate]

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Rollout":
        """The rollout of values that have the shape of one."""
        candidates = [Candidate(**{key: one[key] for key in CANDIDATE}) for one in values["candidates"]]
        return cls(values["id"], values["prompt"], values["gold"], candidates)

    @classmethod
    def from_line(cls, line: str) -> "Rollout":
        """The rollout of a line; raises ValueError for anything else."""
        values = jsonl.parse(line)
        if fault := jsonl.mismatch(values, dict) or jsonl.mismatch(values, ROLLOUT):
            raise ValueError(fault)
        return cls.of(values)

    def to_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def draw_questions(rows: list[dict[str, Any]], n: int | None, seed: int) -> list[Question]:
    """`n` questions (None: all) drawn by `seed` and content, so that the order of the file decides nothing.

    Rows that ask the same are one question; raises RolloutError where they disagree about its answer.
    """
    questions: dict[str, Question] = {}
    for row in rows:
        asked = row_id(*(message["content"] for message in row["prompt"]))
        question = Question(asked, row["prompt"], row["answer"])
        known = questions.setdefault(question.id, question)
        if known.answer != question.answer:
            raise RolloutError(
                f"row {row['id']}: the question {row['prompt'][-1]['content'][:60]!r} has two answers, "
                f"{known.answer!r} and {question.answer!r}; keep one of them in data_prep/"
            )
    keyed = [{"id": row_id(str(seed), question.id), "question": question} for question in questions.values()]
    return [entry["question"] for entry in by_content(keyed, len(keyed) if n is None else n)]


def verify(question: Question, samples: list[Sample], grader: Grader) -> Rollout:
    """The rollout of a question's samples, each of them graded."""
    samples = sorted(samples, key=lambda sample: sample.index)
    texts, cut_off = [sample.text for sample in samples], [sample.finish_reason == "length" for sample in samples]
    grades = grader.grade([question.answer] * len(samples), texts, cut_off)
    candidates = [
        Candidate(sample.text, sample.tokens, sample.finish_reason, grade.answer, grade.verdict.value)
        for sample, grade in zip(samples, grades, strict=True)
    ]
    return Rollout(question.id, question.prompt, question.answer, candidates)


class RolloutFile:
    """A sampling stage's directory: `settings.json` first, a line per question as it comes, `metrics.json` last."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Open `directory` for rollouts of `settings`; raises RolloutError where it holds those of others."""
        self.directory, self.partial = directory, directory / PARTIAL_FILE
        remedy = f"remove {directory} and sample again"
        existing = jsonl.read_object(directory / SETTINGS_FILE, dict, remedy)
        if existing is None:
            atomic.write_json(directory / SETTINGS_FILE, settings)
        elif existing != settings:
            different = sorted(key for key in {*existing, *settings} if existing.get(key) != settings.get(key))
            raise RolloutError(
                f"{directory}: holds samples of other settings ({', '.join(different)}); choose another "
                f"--output_dir or remove it"
            )

    def metrics(self) -> dict[str, Any] | None:
        """The finished metrics, or None."""
        return read_metrics(self.directory) if (self.directory / METRICS_FILE).exists() else None

    def done(self) -> set[str]:
        """Ids of the questions that an interrupted run left whole; a line that is cut or damaged is dropped."""
        ids: set[str] = set()
        if self.partial.is_file():
            with self.partial.open("rb") as file, atomic.writing(self.partial) as kept:
                for values in filter(None, jsonl.unsealed(file, ROLLOUT)):
                    if values["id"] not in ids:
                        ids.add(values["id"])
                        kept.write(jsonl.sealed(values).encode())
        return ids

    def kept(self) -> Iterator[Rollout]:
        """Questions that are whole so far; call `done` first, which drops a line that is cut or damaged."""
        if self.metrics():
            yield from read_rollouts(self.directory)
        elif self.partial.is_file():
            with self.partial.open("rb") as file:
                yield from map(Rollout.of, filter(None, jsonl.unsealed(file, ROLLOUT)))

    def keep(self, rollout: Rollout) -> None:
        """Add a question to what survives an interruption."""
        with self.partial.open("a") as file:
            file.write(jsonl.sealed(asdict(rollout)))

    def finish(self, questions: list[Question]) -> dict[str, Any]:
        """Write rollouts in the order of `questions`, then their metrics, which are returned."""
        with atomic.writing(self.directory / ROLLOUTS_FILE) as file:
            file.writelines(self._in_order(questions))
        metrics = summarise(read_rollouts(self.directory, finished=False))
        if metrics["questions"] != len(questions):
            raise RolloutError(f"{self.directory}: {metrics['questions']} questions of {len(questions)} were sampled")
        content = atomic.json_bytes(metrics)
        written = {name: digests.stamp(self.directory / name) for name in (SETTINGS_FILE, ROLLOUTS_FILE)}
        digests.write_mark(self.directory, {**written, METRICS_FILE: digests.stamp_bytes(content)})
        atomic.write_bytes(self.directory / METRICS_FILE, content)
        self.partial.unlink(missing_ok=True)
        return metrics

    def _in_order(self, questions: list[Question]) -> Iterator[bytes]:
        places, end = {}, 0
        with self.partial.open("rb") as file:
            for line in file:
                places[json.loads(line)["id"]] = end
                end += len(line)
            for question in questions:
                file.seek(places[question.id])
                (values,) = jsonl.unsealed([file.readline()], ROLLOUT)
                if values is None:
                    raise RolloutError(f"{self.partial}: question {question.id} was damaged; start the command again")
                yield Rollout.of(values).to_line().encode()


def read_metrics(directory: Path) -> dict[str, Any]:
    """Figures of a finished sampling stage, as they were written; raises RolloutError or DamageError."""
    remedy = f"remove {directory} and sample again"
    digests.check_files(directory, [METRICS_FILE], remedy)
    metrics = jsonl.read_object(directory / METRICS_FILE, METRICS, remedy)
    if metrics is None:
        raise RolloutError(f"{directory}: {UNFINISHED}")
    return metrics


def read_rollouts(directory: Path, finished: bool = True) -> Iterator[Rollout]:
    """Rollouts of a sampling stage, one at a time; raises RolloutError or DamageError where it is not whole."""
    if finished and not (directory / METRICS_FILE).is_file():
        raise RolloutError(f"{directory}: {UNFINISHED}")
    if finished:
        digests.check_files(directory, [ROLLOUTS_FILE], f"remove {directory} and sample again")
    with (directory / ROLLOUTS_FILE).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Rollout.from_line(line.decode())
            except ValueError as error:
                raise RolloutError(f"{directory / ROLLOUTS_FILE}:{number}: not a rollout ({error})") from error


def summarise(rollouts: Iterable[Rollout]) -> dict[str, Any]:
    """Counts over candidates and questions, pass@k, tokens, and means of what was measured per token."""
    verdicts: Counter[str] = Counter()
    outcomes, tokens, cut_off = [], 0, 0
    weighted = {"logprob": 0.0, "entropy": 0.0}
    measured = 0
    for rollout in rollouts:
        outcomes.append([int(c.verdict == Verdict.CORRECT) for c in rollout.candidates])
        for candidate in rollout.candidates:
            verdicts[Verdict(candidate.verdict)] += 1
            tokens += candidate.tokens
            cut_off += candidate.finish_reason == "length"
            if candidate.entropy is not None and candidate.logprob is not None:
                measured += candidate.tokens + 1  # the end token is one of them
                weighted["logprob"] += candidate.logprob * (candidate.tokens + 1)
                weighted["entropy"] += candidate.entropy * (candidate.tokens + 1)
    n = sum(verdicts.values())
    return {
        "questions": len(outcomes),
        "solved": sum(map(any, outcomes)),
        "candidates": n,
        "counts": {verdict.value: verdicts[verdict] for verdict in Verdict},
        "correct_rate": verdicts[Verdict.CORRECT] / n if n else 0.0,
        "truncation_rate": cut_off / n if n else 0.0,
        "pass_at_k": at_ks(outcomes, lambda x, k: pass_at_k(len(x), sum(x), k)) if outcomes else {},
        "tokens": tokens,
        "tokens_per_candidate": tokens / n if n else 0.0,
        **{name: total / measured if measured else None for name, total in weighted.items()},
    }
