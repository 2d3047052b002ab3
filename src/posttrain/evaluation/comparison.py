"""Test whether B is better than A on the same questions, and which difference this benchmark could have shown."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import in_percent, length_edges
from posttrain.evaluation.results import read_metrics, read_samples
from posttrain.evaluation.scoring import accuracy_by_length, is_correct, questions_of

MUST_AGREE = ("benchmark", "data_sha256", "limit", "prompt", "decoding", "grader")
EXACT_QUESTIONS = 20  # up to here all sign flips are counted
FLIPS = 20_000  # beyond, this many seeded ones
POWER_QUANTILES = 1.959963984540054 + 0.8416212335729143  # 5 % two-sided, 80 % power


class ComparisonError(PosttrainError):
    """Two results that cannot be compared, with the field that differs."""


@dataclass(frozen=True)
class Comparison:
    """B minus A on one benchmark. `better` and `worse` are ids of questions that changed, at one sample a question.

    `strict` and `lenient` are the differences when the prompt's format must be met too, and when unmarked answers
    count: a gain in format alone shows in the first and not in the second. `lengths` holds edge, samples and accuracies
    of A and B in bins whose edges are A's.
    """

    benchmark: str
    questions: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str
    detectable: float
    better: list[str]
    worse: list[str]
    strict: float
    lenient: float
    lengths: list[dict[str, Any]]


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b against c discordant pairs; 1 where there are none."""
    return float(scipy.stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p that differences per question are symmetric about 0: exact for few questions, else seeded."""
    observed, q = abs(differences.mean()), len(differences)
    if q <= EXACT_QUESTIONS:
        signs = 1 - 2 * ((np.arange(2**q)[:, None] >> np.arange(q)) & 1)
        return float((np.abs(signs @ differences) / q >= observed - 1e-12).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(FLIPS):
        signs = generator.choice((-1, 1), q)
        extreme += abs((signs * differences).mean()) >= observed - 1e-12
    return (extreme + 1) / (FLIPS + 1)


def paired_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean difference over questions with its 95 % t interval."""
    mean, q = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(q)
    half = float(scipy.stats.t.ppf(0.975, q - 1)) * error
    return mean, mean - half, mean + half


def detectable_difference(differences: np.ndarray) -> float:
    """Smallest true difference that a run of this size and noise finds with 80 % power at 5 %.

    For one sample a question with a share d of changed questions this is 2.8 · √(d / n).
    """
    spread = math.sqrt(float((differences**2).mean()))
    return POWER_QUANTILES * spread / math.sqrt(len(differences))


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for looking at several benchmarks at once (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def compare(a: Path, b: Path, shared: bool = False) -> Comparison:
    """Compare two directories evals/<run>/<benchmark>; raises ComparisonError where a setting differs.

    shared: compare on the questions that both answered, where one was asked fewer (`limit`)
    """
    benchmark, *samples = read_alike(a, b, shared)
    outcomes = [questions_of(side, is_correct) for side in samples]
    if outcomes[0].keys() != outcomes[1].keys():
        raise ComparisonError(f"{a} and {b}: hold different questions; evaluate both on the same file")
    ids = list(outcomes[0])
    if len(ids) < 2:
        raise ComparisonError(f"{a} and {b}: share {len(ids)} question; a comparison needs two")
    left, right = (np.array([np.mean(o[i]) for i in ids]) for o in outcomes)
    differences = right - left
    mean, low, high = paired_interval(differences)
    single = all(len(o[i]) == 1 for o in outcomes for i in ids)
    better = [i for i, d in zip(ids, differences, strict=True) if d > 0]
    worse = [i for i, d in zip(ids, differences, strict=True) if d < 0]
    return Comparison(
        benchmark=benchmark,
        questions=len(ids),
        a=float(left.mean()),
        b=float(right.mean()),
        difference=mean,
        low=low,
        high=high,
        p=mcnemar(len(worse), len(better)) if single else sign_flip(differences),
        test="McNemar, exact" if single else "sign flips",
        detectable=detectable_difference(differences),
        better=better,
        worse=worse,
        strict=_difference(samples, lambda s: is_correct(s) and s["format"]),
        lenient=_difference(samples, lambda s: s["correct_lenient"]),
        lengths=_by_length(*samples),
    )


def read_alike(a: Path, b: Path, shared: bool = False) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """The benchmark of two results and the samples of both; raises ComparisonError for the first setting that differs.

    shared: `limit` may differ, and samples are those of questions that both were asked
    """
    metrics = [read_metrics(path) for path in (a, b)]
    for field in MUST_AGREE:
        left, right = (_setting(m, field, shared) for m in metrics)
        if left != right and not (shared and field == "limit"):
            raise ComparisonError(f"{a} and {b}: {field} differs ({left!r} and {right!r}); evaluate both alike")
    left, right = (read_samples(path)[1] for path in (a, b))
    if shared:
        asked = [{sample["id"]: sample["prompt_hash"] for sample in side} for side in (left, right)]
        both = asked[0].keys() & asked[1].keys()
        if others := sorted(i for i in both if asked[0][i] != asked[1][i]):
            raise ComparisonError(f"{a} and {b}: question {others[0]} was asked in another prompt; evaluate both alike")
        left, right = ([sample for sample in side if sample["id"] in both] for side in (left, right))
    return metrics[0]["benchmark"], left, right


def _difference(samples: list[list[dict[str, Any]]], counts: Callable[[dict[str, Any]], bool]) -> float:
    left, right = (sum(map(counts, side)) / len(side) for side in samples)
    return right - left


def _by_length(of_a: list[dict[str, Any]], of_b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    edges = length_edges([sample["tokens"] for sample in of_a])
    bins = (accuracy_by_length(side, edges)["bins"] for side in (of_a, of_b))
    return [{"from": edge, "a": a, "b": b} for edge, a, b in zip(edges[:-1], *bins, strict=True)]


def _setting(metrics: dict[str, Any], field: str, shared: bool) -> Any:
    """A setting without what may differ.

    The tokens that end an answer are the checkpoint's own, as it was trained. A prompt's hash is that of the first
    question, which is another one where `limit` differs; then each question's own is compared.
    """
    value, free = metrics.get(field), {"decoding": "stop_token_ids", "prompt": "hash" if shared else None}
    return {k: v for k, v in value.items() if k != free[field]} if field in free else value


def table(comparisons: list[Comparison]) -> str:
    """One line per benchmark, and what the numbers mean."""
    heads = f"{'B − A':<26}{'p':>10}{'Holm p':>10}{'could see':>11}{'flips':>9}{'strict':>8}{'lenient':>9}"
    lines = [f"{'benchmark':<14}{'n':>6}{'A':>8}{'B':>8}  {heads}"]
    for c, adjusted in zip(comparisons, holm([c.p for c in comparisons]), strict=True):
        interval = in_percent(c.difference, c.low, c.high, "+")
        lines.append(
            f"{c.benchmark:<14}{c.questions:>6}{c.a:>8.1%}{c.b:>8.1%}  {interval:<26}{c.p:>10.2g}{adjusted:>10.2g}"
            f"{f'{c.detectable:.1%}' if c.detectable else '-':>11}{f'+{len(c.better)} −{len(c.worse)}':>9}"
            f"{c.strict:>+8.1%}{c.lenient:>+9.1%}"
        )
    lines.append(f"p: {comparisons[0].test}. could see: the smallest true difference found with 80 % power at 5 %.")
    lines.append("strict, lenient: B − A with the prompt's format required, and with unmarked answers counted.")
    return "\n".join(lines)


def length_table(comparison: Comparison) -> str:
    """Accuracy of A and B among samples of like length; the bins hold a fifth of A's samples each."""
    lines = [f"{comparison.benchmark}: {'tokens from':>11}{'A':>14}{'B':>14}"]
    for found in comparison.lengths:
        cells = [f"{s['accuracy']:.1%} of {s['n']}" if s["n"] else "-" for s in (found["a"], found["b"])]
        lines.append(f"{'':<{len(comparison.benchmark)}}  {found['from']:>11.0f}{cells[0]:>14}{cells[1]:>14}")
    return "\n".join(lines)
