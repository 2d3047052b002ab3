"""Figures of an evaluation with their uncertainty. Pure functions of counts and lengths."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from posttrain.grading import Verdict

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
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
