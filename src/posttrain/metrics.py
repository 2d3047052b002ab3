"""Figures of an evaluation with their uncertainty. Pure functions of counts and lengths."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.stats

from posttrain.grading import Verdict

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
BOOTSTRAP_ROUNDS = 10_000
PERCENTILES = (10, 50, 90, 99)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion from n independent questions (Wilson 1927); (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = (centre - half) / (1 + Z95**2 / n), (centre + half) / (1 + Z95**2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def clustered_interval(correct: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Mean over questions, and its 95 % t interval with the question as the unit (Miller, arXiv 2411.00640).

    correct: for each of Q ≥ 2 questions the 0/1 outcomes of its samples. Samples of one question are not independent:
    treating them as such makes an interval for 30 questions of 16 samples cover 51 % instead of 95 %.
    returns: (mean, low, high), cut to [0, 1]
    """
    if len(correct) < 2:
        raise ValueError(f"{len(correct)} questions: an interval over questions needs two")
    n = sum(map(len, correct))
    mean = sum(map(sum, correct)) / n
    residuals = [sum(outcome - mean for outcome in outcomes) for outcomes in correct]
    q = len(correct)
    error = math.sqrt(sum(r * r for r in residuals)) / n * math.sqrt(q / (q - 1))
    if error == 0:  # all questions alike: no spread to see, which is not certainty
        return mean, *wilson_interval(round(mean * q), q)
    half = float(scipy.stats.t.ppf(0.975, q - 1)) * error
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is correct, from c correct of n (Chen et al., arXiv 2107.03374)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} correct in {n} samples: expected 1 ≤ k ≤ n and 0 ≤ c ≤ n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / t for t in range(n - c + 1, n + 1))


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, by resampling questions; the same seed gives the same interval."""
    array = np.asarray(values, dtype=float)
    if (array == array[0]).all():  # no spread to see, which is not certainty
        return wilson_interval(round(float(array.sum())), len(array))
    generator = np.random.default_rng(seed)
    means = [array[generator.integers(0, len(array), len(array))].mean() for _ in range(BOOTSTRAP_ROUNDS)]
    low, high = np.percentile(means, [2.5, 97.5])
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


def rate(part: int, n: int) -> float:
    return part / n if n else 0.0
