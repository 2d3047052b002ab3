"""Best of n: of a question's samples the one with the highest reward, held against the same model's greedy answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation import results
from posttrain.evaluation.comparison import ComparisonError, mcnemar, paired_interval
from posttrain.evaluation.estimates import in_percent
from posttrain.evaluation.scoring import is_correct

MUST_AGREE = ("benchmark", "data_sha256", "limit", "prompt", "grader", "checkpoint")


@dataclass(frozen=True)
class Sampled:
    """One benchmark's metrics, and its questions with all their samples in order."""

    metrics: dict[str, Any]
    questions: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """Accuracies of one benchmark, or of all questions together, and the paired test of best-of-n against greedy.

    `mean` is that of a single sample, `oracle` the share of questions that any sample answers.
    """

    benchmark: str
    questions: int
    samples: int
    greedy: float
    mean: float
    best: float
    oracle: float
    difference: float
    low: float
    high: float
    p: float


def read_sampled(directory: Path) -> Sampled:
    """A finished evaluation, evals/<run>/<benchmark>; raises PosttrainError where it is not."""
    metrics, (_, samples) = results.read_metrics(directory), results.read_samples(directory)
    questions: dict[str, list[dict[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: sample["sample"]):
        questions.setdefault(sample["id"], []).append(sample)
    return Sampled(metrics, questions)


def check_alike(sampled: Sampled, greedy: Sampled) -> None:
    """Raise ComparisonError unless both are of the same weights on the same questions, and `greedy` is greedy."""
    for name in MUST_AGREE:
        left, right = sampled.metrics[name], greedy.metrics[name]
        if left != right:
            raise ComparisonError(f"{name} differs between samples and greedy ({left!r} and {right!r}); evaluate alike")
    if greedy.metrics["decoding"]["temperature"] != 0 or sampled.metrics["decoding"]["num_samples"] < 2:
        raise ComparisonError("expected an evaluation with num_samples of 2 or more, and one with temperature: 0")


def choose(rewards: Sequence[float | None]) -> int:
    """The place of the highest reward, the first of equal ones; None, of a sample that cannot be scored, is lowest."""
    values = [-math.inf if reward is None else reward for reward in rewards]
    return values.index(max(values))


def outcomes(
    sampled: Sampled, greedy: Sampled, rewards: dict[str, list[float | None]]
) -> tuple[list[int], list[int], list[list[int]]]:
    """0 or 1 per question for greedy and for the chosen sample, and for each of its samples."""
    by_greedy = [int(is_correct(greedy.questions[i][0])) for i in sampled.questions]
    correct = [[int(is_correct(sample)) for sample in samples] for samples in sampled.questions.values()]
    chosen = [row[choose(rewards[i])] for i, row in zip(sampled.questions, correct, strict=True)]
    return by_greedy, chosen, correct


def compare(benchmark: str, greedy: list[int], chosen: list[int], correct: list[list[int]]) -> Outcome:
    """Accuracies with McNemar's exact test and the 95 % interval of the difference."""
    differences = np.array(chosen) - np.array(greedy)
    mean, low, high = paired_interval(differences)
    return Outcome(
        benchmark,
        len(greedy),
        len(correct[0]),
        float(np.mean(greedy)),
        float(np.mean([np.mean(row) for row in correct])),
        float(np.mean(chosen)),
        float(np.mean([max(row) for row in correct])),
        mean,
        low,
        high,
        mcnemar(int((differences < 0).sum()), int((differences > 0).sum())),
    )


def table(results: list[Outcome]) -> str:
    """One line per benchmark, and what the columns are."""
    heads = f"{'one sample':>11}{'greedy':>8}{'best':>8}{'any':>8}  {'best − greedy':<26}{'p':>10}"
    lines = [f"{'benchmark':<14}{'n':>6}{heads}"]
    for r in results:
        interval = in_percent(r.difference, r.low, r.high, "+")
        shares = f"{r.mean:>11.1%}{r.greedy:>8.1%}{r.best:>8.1%}{r.oracle:>8.1%}"
        lines.append(f"{r.benchmark:<14}{r.questions:>6}{shares}  {interval:<26}{r.p:>10.2g}")
    n = results[0].samples
    return "\n".join(
        [*lines, f"best: of {n} by reward; any: of {n} by the verifier, the most that a choice can reach."]
    )
