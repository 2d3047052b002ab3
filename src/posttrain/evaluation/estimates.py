"""Figures of an evaluation with their uncertainty. Pure functions of counts and lengths."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.stats

from posttrain.grading.grader import Verdict

BOOTSTRAP_ROUNDS = 10_000
PERCENTILES = (10, 50, 90, 99)
BIN_PERCENTILES = (0, 20, 40, 60, 80, 100)
ALL_SUBSETS = 20_000  # up to here maj@k counts every choice of k samples
DRAWN_SUBSETS = 1_000  # beyond, this many seeded ones


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion from n independent questions (Wilson 1927); (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n")
    if n == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def in_percent(value: float, low: float, high: float, sign: str = "") -> str:
    """An estimate with its interval for a person, `82.0% [76.1%, 86.7%]`; `sign="+"` shows a difference's sign."""
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"


def clustered_interval(correct: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Mean over questions, and its 95 % t interval with the question as the unit (Miller, arXiv 2411.00640).

    correct: for each of Q ≥ 2 questions the 0/1 outcomes of its samples. Samples of one question are not independent:
    treating them as such makes an interval for 30 questions of 16 samples cover 51 % instead of 95 %.
    returns: (mean, low, high), cut to [0, 1]
    """
    if len(correct) < 2:
        raise ValueError(f"{len(correct)} questions: an interval over questions needs two")
    mean, q, error = sum(map(sum, correct)) / sum(map(len, correct)), len(correct), standard_error(correct)
    if error == 0:  # all questions alike: no spread to see, which is not certainty
        return mean, *wilson_interval(round(mean * q), q)
    half = float(scipy.stats.t.ppf(0.975, q - 1)) * error
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def standard_error(correct: Sequence[Sequence[int]]) -> float:
    """Standard error of the mean over all samples of Q ≥ 2 questions, with the question as the unit."""
    n, q = sum(map(len, correct)), len(correct)
    mean = sum(map(sum, correct)) / n
    residuals = [sum(outcomes) - mean * len(outcomes) for outcomes in correct]
    return math.sqrt(sum(r * r for r in residuals)) / n * math.sqrt(q / (q - 1))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is correct, from c correct of n (Chen et al., arXiv 2107.03374)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} correct in {n} samples: expected 1 ≤ k ≤ n and 0 ≤ c ≤ n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / t for t in range(n - c + 1, n + 1))


def maj_at_k(votes: Sequence[int | None], k: int) -> float:
    """Chance that the commonest answer among k of a question's samples is the gold, a tie shared evenly.

    votes: class of equal answers per sample, 0 for the gold's, None for no answer, which does not vote.
    returns: mean over all choices of k samples, or over seeded ones where they are more than 20,000
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} of {len(votes)} samples: expected 1 ≤ k ≤ samples")
    classes = sorted({0, *(vote for vote in votes if vote is not None)})  # the gold's is first, voted for or not
    ballots = np.array([[vote == c for c in classes] for vote in votes], dtype=np.int64)
    counts = _subsets(len(votes), k) @ ballots
    most = counts.max(axis=1, keepdims=True)
    winners = (counts == most) & (most > 0)
    return float((winners[:, 0] / np.maximum(winners.sum(axis=1), 1)).mean())


@functools.cache
def _subsets(n: int, k: int) -> np.ndarray:
    """Choices of k among n as rows of 0 and 1; the same ones for every question."""
    if math.comb(n, k) <= ALL_SUBSETS:
        chosen = np.array(list(itertools.combinations(range(n), k)))
    else:
        generator = np.random.default_rng([n, k])
        chosen = np.array([generator.permutation(n)[:k] for _ in range(DRAWN_SUBSETS)])
    rows = np.zeros((len(chosen), n), dtype=np.int64)
    np.put_along_axis(rows, chosen, 1, axis=1)
    return rows


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, by resampling questions; the same seed gives the same interval."""
    array = np.asarray(values, dtype=float)
    if (array == array[0]).all():  # no spread to see, which is not certainty
        return wilson_interval(round(float(array.sum())), len(array))
    generator = np.random.default_rng(seed)
    at_once = max(1, 2**20 // len(array))  # rounds, so that memory is bounded
    sizes = [min(at_once, BOOTSTRAP_ROUNDS - start) for start in range(0, BOOTSTRAP_ROUNDS, at_once)]
    means = [array[generator.integers(0, len(array), (size, len(array)))].mean(axis=1) for size in sizes]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def count_verdicts(verdicts: Sequence[str]) -> dict[str, int]:
    """Samples per outcome, every outcome named; an unknown one raises, so the sum is the number of samples."""
    counts = Counter(Verdict(verdict) for verdict in verdicts)
    return {verdict.value: counts[verdict] for verdict in Verdict}


def length_summary(tokens: Sequence[int]) -> dict[str, float] | None:
    """Mean, percentiles and maximum of completion lengths in tokens; None for no samples."""
    if not tokens:
        return None
    percentiles = {f"p{p}": float(np.percentile(tokens, p)) for p in PERCENTILES}
    return {"mean": float(np.mean(tokens)), **percentiles, "max": float(max(tokens))}


def percentile_intervals(lengths: Sequence[Sequence[int]], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the percentiles of lengths, by resampling questions with all their samples.

    lengths: tokens of each question's samples; empty for no questions
    """
    if not lengths:
        return {}
    array, generator = np.full((len(lengths), max(map(len, lengths))), np.nan), np.random.default_rng(seed)
    for row, own in zip(array, lengths, strict=True):
        row[: len(own)] = own
    percentile = np.nanpercentile if np.isnan(array).any() else np.percentile  # the first is many times slower
    at_once = max(1, 2**20 // array.size)  # rounds, so that memory is bounded
    found = []
    for start in range(0, BOOTSTRAP_ROUNDS, at_once):
        rounds = min(at_once, BOOTSTRAP_ROUNDS - start)
        drawn = array[generator.integers(0, len(array), (rounds, len(array)))].reshape(rounds, -1)
        found.append(percentile(drawn, PERCENTILES, axis=1))
    low, high = np.percentile(np.concatenate(found, axis=1), [2.5, 97.5], axis=1)
    return {f"p{p}": (float(a), float(b)) for p, a, b in zip(PERCENTILES, low, high, strict=True)}


def length_edges(tokens: Sequence[int]) -> list[float]:
    """Edges of five bins that hold a fifth of the samples each; empty for no samples."""
    return [float(np.percentile(tokens, p)) for p in BIN_PERCENTILES] if tokens else []


def rate(part: int, n: int) -> float:
    return part / n if n else 0.0
