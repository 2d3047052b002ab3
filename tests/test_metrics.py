"""Intervals against published vectors, counts that add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading import Verdict
from posttrain.metrics import count_verdicts, length_summary, wilson_interval
from posttrain.results import ResultError, check_counts, compute_metrics


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


def sample(verdict: Verdict, tokens: int = 4) -> dict:
    reason = "length" if verdict is Verdict.TRUNCATED else "stop"
    answer = "1" if verdict in (Verdict.CORRECT, Verdict.WRONG) else None
    return {"verdict": verdict.value, "tokens": tokens, "finish_reason": reason, "boxed": answer is not None}


@given(st.lists(st.sampled_from(list(Verdict))))
def test_counts_of_any_samples_add_up(verdicts):
    metrics = compute_metrics([sample(verdict) for verdict in verdicts])
    check_counts(metrics)
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
    with pytest.raises(ResultError, match="add up to 1, but there are 2"):
        check_counts({"counts": {"correct": 1}, "n": 2})


def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="maybe"):
        count_verdicts(["maybe"])


def test_percentiles_are_linear():
    assert length_summary([1, 2, 3, 4])["p50"] == 2.5
