"""Intervals against published vectors, counts that add up."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading import Verdict
from posttrain.metrics import (
    bootstrap_interval,
    clustered_interval,
    count_verdicts,
    length_summary,
    pass_at_k,
    wilson_interval,
)
from posttrain.results import ResultError, check_counts, compute_metrics

NAMES = itertools.count()


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 30, 0.0, 0.113513), (3, 30, 0.034600, 0.256211), (24, 40, 0.445959, 0.736517), (374, 500, 0.708152, 0.784066)],
)
def test_wilson_vectors(successes, n, low, high):
    assert wilson_interval(successes, n) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_stays_in_range(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_refuses_more_successes_than_questions():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [(10, 3, 5, 0.916666667), (64, 1, 8, 0.125), (5, 5, 2, 1.0), (8, 0, 4, 0.0), (256, 2, 128, 0.750980392)],
)
def test_pass_at_k_vectors(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case):
    n, c, k = case
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="pass@3 of 1 correct in 2 samples"):
        pass_at_k(2, 1, 3)


ROWS = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]]


def test_the_interval_over_questions():
    mean, low, high = clustered_interval(ROWS)
    assert mean == 0.5
    error = 0.17677670  # by hand; 0.1147 if samples of a question were independent
    assert (high - low) / 2 == pytest.approx(2.7764451 * error, abs=1e-6)
    with pytest.raises(ValueError, match="needs two"):
        clustered_interval([[1, 0]])


def test_no_spread_is_not_certainty():
    assert clustered_interval([[0, 0]] * 30)[1:] == pytest.approx((0.0, 0.113513), abs=1e-6)
    assert bootstrap_interval([1.0] * 30) == pytest.approx((1 - 0.113513, 1.0), abs=1e-6)


def test_intervals_cover_what_they_promise():
    """30 questions of 16 samples whose chances differ: 95 % intervals, 2,000 times."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        chances = generator.beta(0.5, 1.0, 30)
        rows = (generator.random((30, 16)) < chances[:, None]).astype(int)
        _, low, high = clustered_interval(rows.tolist())
        covered += low <= 1 / 3 <= high
    assert 0.93 <= covered / 2000 <= 0.965


def test_the_bootstrap_is_seeded_and_holds_the_mean():
    values = [0.0, 1.0, 0.5, 0.25]
    low, high = bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert low < sum(values) / 4 < high


def test_several_samples_of_a_question():
    samples = [sample(Verdict.CORRECT if x else Verdict.WRONG, name=str(i)) for i, row in enumerate(ROWS) for x in row]
    metrics = compute_metrics(samples)
    assert (metrics["n"], metrics["questions"]) == (20, 5)
    assert metrics["accuracy"]["interval"] == "question_clustered_t95"
    assert metrics["pass_at_k"]["1"]["value"] == pytest.approx(metrics["accuracy"]["value"])
    assert metrics["pass_at_k"]["4"]["value"] == 0.8
    assert set(metrics["pass_at_k"]) == {"1", "2", "4"}


def sample(verdict: Verdict, tokens: int = 4, name: str | None = None) -> dict:
    reason = "length" if verdict is Verdict.TRUNCATED else "stop"
    answer = "1" if verdict in (Verdict.CORRECT, Verdict.WRONG) else None
    return {
        "verdict": verdict.value,
        "tokens": tokens,
        "finish_reason": reason,
        "boxed": answer is not None,
        "id": name or str(next(NAMES)),
    }


@given(st.lists(st.sampled_from(list(Verdict))))
def test_counts_of_any_samples_add_up(verdicts):
    metrics = compute_metrics([sample(verdict) for verdict in verdicts])
    check_counts({**metrics, "expected_samples": len(verdicts)})
    assert metrics["n"] == len(verdicts)
    assert metrics["counts"] == {v.value: verdicts.count(v) for v in Verdict}


def test_rates_and_lengths():
    metrics = compute_metrics(
        [
            sample(Verdict.CORRECT, 3),
            sample(Verdict.WRONG, 5),
            sample(Verdict.TRUNCATED, 9),
            sample(Verdict.UNPARSED, 1),
        ]
    )
    assert metrics["accuracy"]["value"] == 0.25
    assert metrics["format_rate"] == 0.5
    assert metrics["truncation_rate"] == 0.25
    assert metrics["tokens"]["all"]["mean"] == 4.5
    assert metrics["tokens"]["correct"]["max"] == 3
    assert compute_metrics([])["tokens"]["all"] is None


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(ResultError, match="add up to 1 of 2 samples, expected 2"):
        check_counts({"counts": {"correct": 1}, "n": 2, "expected_samples": 2})


def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="maybe"):
        count_verdicts(["maybe"])


def test_percentiles_are_linear():
    assert length_summary([1, 2, 3, 4])["p50"] == 2.5
