"""Bounds that chance breaks less than once in 10^5 runs, for figures that trained weights and samples decide."""

from scipy.stats import binomtest


def is_guessing(share: float, n: int, chance: float) -> bool:
    """Whether `share` of n answers is what guessing may give: an exact test that guessing fails once in 10^6."""
    return bool(binomtest(round(share * n), n, chance).pvalue > 1e-6)
