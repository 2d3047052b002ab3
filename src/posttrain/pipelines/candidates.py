"""Choose which of a model's verified samples become training rows, by rules over the candidates of one question."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.data.manifest import Source, check_dataset, split_path, write_dataset
from posttrain.data.rows import QUESTIONS, Row, read_parquet, row_id
from posttrain.errors import PosttrainError
from posttrain.grading.grader import Grader, Verdict
from posttrain.pipelines.rollouts import ROLLOUTS_FILE, Candidate, Rollout, read_rollouts

NEAR = 1e-4  # |answer − gold| that counts as nearly right
CORRECT_SCORE, NEAR_SCORE, WRONG_SCORE = 1.5, 0.9, 0.0  # the scale of EZTinker's rejection sampler: confidence + 0.5
ACCEPTS = ("correct", "threshold", "best")
SELECTS = ("first", "shortest", "highest_logprob", "all_correct")
SOURCE = "rejection_sampling"


class SelectionError(PosttrainError):
    """A rule that cannot be applied to these samples."""


@dataclass(frozen=True)
class Rule:
    """Which candidates are accepted and which of those kept; only `accept: correct` never trains on a wrong answer."""

    accept: str = "correct"
    select: str = "first"
    threshold: float = CORRECT_SCORE
    max_per_question: int | None = None


def score(candidate: Candidate, gold: str) -> float:
    """1.5 for a verified answer, 0.9 for a number within 1e-4 of the gold, else 0."""
    if candidate.verdict == Verdict.CORRECT:
        return CORRECT_SCORE
    try:
        near = abs(float((candidate.answer or "").replace(",", "")) - float(gold.replace(",", ""))) < NEAR
    except ValueError:
        return WRONG_SCORE
    return NEAR_SCORE if near else WRONG_SCORE


def accepted(rollout: Rollout, rule: Rule) -> list[Candidate]:
    """Candidates that the rule accepts, in their order.

    One that was cut off is never accepted, even with the right answer in it: training would teach to stop there.
    """
    whole = [c for c in rollout.candidates if c.finish_reason == "stop" and c.text.strip()]
    if rule.accept == "correct":
        return [c for c in whole if c.verdict == Verdict.CORRECT]
    scores = [score(c, rollout.gold) for c in whole]
    if rule.accept == "threshold":
        return [c for c, value in zip(whole, scores, strict=True) if value >= rule.threshold]
    return [whole[scores.index(max(scores))]] if whole else []  # best: the first of the highest score, wrong or not


def selected(rollout: Rollout, rule: Rule) -> list[Candidate]:
    """Candidates of a question to train on; ties go to the lower index."""
    candidates = accepted(rollout, rule)
    if not candidates:
        return []
    if rule.select == "shortest":
        return [min(candidates, key=lambda c: c.tokens)]
    if rule.select == "highest_logprob":
        if any(c.logprob is None for c in candidates):
            raise SelectionError(
                f"question {rollout.id}: its samples carry no log-probabilities, so select: highest_logprob cannot "
                f"choose; sample from weights on this machine, or select: shortest"
            )
        return [max(candidates, key=lambda c: c.logprob or 0.0)]
    if rule.select == "all_correct":
        distinct: dict[str, Candidate] = {}
        for candidate in candidates:
            distinct.setdefault(" ".join(candidate.text.split()), candidate)
        return list(distinct.values())[: rule.max_per_question]
    return candidates[:1]


def training_row(rollout: Rollout, candidate: Candidate) -> Row:
    """The question as prompt and the sampled text, whole and unchanged, as completion."""
    asked = [message["content"] for message in rollout.prompt]
    completion = [{"role": "assistant", "content": candidate.text}]
    return Row(row_id(*asked, candidate.text), rollout.prompt, completion, rollout.gold, SOURCE)


def select_rows(rollouts: Iterable[Rollout], rule: Rule) -> tuple[list[Row], dict[str, int]]:
    """Distinct rows in the order of the rollouts, and how many candidates were left out for each reason."""
    rows: dict[str, Row] = {}
    dropped: Counter[str] = Counter()
    for rollout in rollouts:
        kept = selected(rollout, rule)
        n_accepted = len(accepted(rollout, rule))
        dropped["not_accepted"] += len(rollout.candidates) - n_accepted
        dropped["not_selected"] += n_accepted - len(kept)
        for candidate in kept:
            row = training_row(rollout, candidate)
            dropped["repeated"] += row.id in rows
            rows[row.id] = row
    return list(rows.values()), dict(dropped)


def write_selection(directories: list[Path], rule: Rule, out: Path) -> dict[str, Any]:
    """Write the dataset of what `rule` keeps of finished rollouts; returns the manifest's counts."""
    rows, dropped = select_rows((rollout for path in directories for rollout in read_rollouts(path)), rule)
    if not rows:
        raise SelectionError(f"{out}: nothing to write: {dropped.get('not_accepted', 0)} candidates, none accepted")
    digests = {str(path / ROLLOUTS_FILE): atomic.sha256_file(path / ROLLOUTS_FILE) for path in directories}
    source = Source(id=SOURCE, licence="that of the questions and of the model", sha256=digests)
    return write_dataset(out, {"train": rows}, source, None, dropped, None)["counts"]


def audit_dataset(directory: Path) -> int:
    """Grade every row of a dataset anew; the number of rows, or SelectionError naming those that are not correct."""
    rows = read_parquet(split_path(directory, check_dataset(directory), "train"), (*QUESTIONS, "completion"))
    with Grader() as grader:
        faulty = audit(rows, grader)
    if faulty:
        named = ", ".join(f"{identifier} ({verdict})" for identifier, verdict in faulty[:5])
        raise SelectionError(
            f"{directory}: {len(faulty)} of {len(rows)} rows are not correct: {named}; select again with "
            f"--accept correct"
        )
    return len(rows)


def why_nothing(counts: dict[str, int], cut_off_correct: int) -> str:
    """The likeliest reason why a round accepted nothing, from its verdicts, and what to do about it."""
    n = sum(counts.values())
    if cut_off_correct:
        return f"{cut_off_correct} correct answers ran on until they were cut off; the model does not stop"
    worst = max(counts, key=lambda verdict: counts[verdict])
    reasons = {
        Verdict.TRUNCATED: "cut off before an answer; raise max_new_tokens or teach the model to stop",
        Verdict.UNPARSED: "without a marked answer; teach the format first, a little SFT is enough",
        Verdict.WRONG: "answered wrongly; the questions are too hard for it, add candidates or easier questions",
    }
    return f"{counts[worst]} of {n} samples were {reasons.get(Verdict(worst), f'of verdict {worst}')}"


def audit(rows: list[dict[str, Any]], grader: Grader) -> list[tuple[str, str]]:
    """(row id, verdict) of every row whose completion the verifier, asked anew, does not find correct."""
    texts = [row["completion"][-1]["content"] for row in rows]
    grades = grader.grade([row["answer"] for row in rows], texts, [False] * len(rows))
    return [
        (row["id"], grade.verdict.value)
        for row, grade in zip(rows, grades, strict=True)
        if grade.verdict != Verdict.CORRECT
    ]
