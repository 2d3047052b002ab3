"""Intervals against published vectors, counts that add up."""

import functools
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluation.estimates import (
    bootstrap_interval,
    clustered_interval,
    count_verdicts,
    length_summary,
    maj_at_k,
    pass_at_k,
    percentile_intervals,
    wilson_interval,
)
from posttrain.evaluation.results import ResultError, check_counts, table
from posttrain.evaluation.scoring import accuracy, accuracy_by_length, compute_metrics, macro_mean
from posttrain.grading.grader import Verdict

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


def coverage(interval, draw, truth: float, rounds: int = 2000) -> float:
    """Share of simulated evaluations whose interval holds the truth.

    Numpy's seeded draws are the same on every machine, so what is asserted of them does not vary between runs.
    """
    generator = np.random.default_rng(0)
    found = [interval(draw(generator)) for _ in range(rounds)]
    return sum(low <= truth <= high for low, high in found) / rounds


def of_questions(q: int, k: int):
    """Rows of 0/1 for questions whose chances differ, of mean 1/3."""
    return lambda generator: (generator.random((q, k)) < generator.beta(0.5, 1.0, q)[:, None]).astype(int).tolist()


@pytest.mark.parametrize(("q", "k"), [(30, 16), (40, 16), (500, 4)])
def test_the_interval_over_questions_covers_what_it_promises(q, k):
    assert 0.93 <= coverage(lambda rows: clustered_interval(rows)[1:], of_questions(q, k), 1 / 3) <= 0.965


@pytest.mark.parametrize(("n", "share"), [(30, 0.3), (40, 0.5), (500, 0.62)])
def test_the_interval_of_one_sample_covers_what_it_promises(n, share):
    draw = lambda generator: generator.binomial(n, share)  # noqa: E731
    interval = functools.cache(lambda successes: wilson_interval(successes, n))
    assert 0.93 <= coverage(interval, draw, share, 20_000) <= 0.965


@pytest.mark.slow
@pytest.mark.parametrize(("q", "measure"), [(40, "pass"), (40, "maj"), (500, "pass")])
def test_the_bootstrap_covers_what_it_promises(q, measure):
    def values(rows):
        return [pass_at_k(8, sum(r), 4) if measure == "pass" else maj_at_k([1 - x for x in r], 3) for r in rows]

    truth = float(np.mean(values(of_questions(200_000, 8)(np.random.default_rng(1)))))
    draw = of_questions(q, 8)
    found = coverage(lambda rows: bootstrap_interval(values(rows)), draw, truth, rounds=1000 if q < 100 else 300)
    assert 0.93 <= found <= 0.965


def test_the_mean_of_benchmarks_covers_what_it_promises():
    def draw(generator):
        return [accuracy(of_questions(q, k)(generator)) for q, k in ((30, 16), (40, 16), (500, 1))]

    def interval(accuracies):
        mean = macro_mean(accuracies)
        return mean["low"], mean["high"]

    assert 0.93 <= coverage(interval, draw, 1 / 3) <= 0.965


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [([0, 0, 1, 2], 3, 2 / 3), ([0, 0, 1, 1], 4, 1 / 2), ([None, None, None, 0], 4, 1.0), ([0, 1, 1, 1], 2, 1 / 4),
     ([None, None], 2, 0.0), ([1, 1, 2], 3, 0.0)],
)  # fmt: skip
def test_maj_at_k_vectors(votes, k, expected):
    assert maj_at_k(votes, k) == pytest.approx(expected)


@given(st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=7).flatmap(
    lambda votes: st.tuples(st.just(votes), st.integers(1, len(votes)))))  # fmt: skip
def test_maj_at_k_is_the_mean_over_all_subsets(case):
    votes, k = case
    scores = []
    for chosen in itertools.combinations(votes, k):
        counts = Counter(vote for vote in chosen if vote is not None)
        winners = [vote for vote, n in counts.items() if n == max(counts.values())]
        scores.append((0 in winners) / len(winners) if winners else 0.0)
    assert maj_at_k(votes, k) == pytest.approx(sum(scores) / len(scores))


def test_maj_at_k_of_many_samples_is_drawn_with_a_seed():
    votes = [0] * 20 + [1] * 30 + [None] * 14
    assert maj_at_k(votes, 8) == maj_at_k(votes, 8)
    assert 0.1 < maj_at_k(votes, 8) < 0.4
    with pytest.raises(ValueError, match="maj@3 of 2 samples"):
        maj_at_k([0, 1], 3)


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


def sample(verdict: Verdict, tokens: int = 4, name: str | None = None, **changes) -> dict:
    answered = verdict in (Verdict.CORRECT, Verdict.WRONG)
    return {
        "verdict": verdict.value,
        "tokens": tokens,
        "finish_reason": "length" if verdict is Verdict.TRUNCATED else "stop",
        "format": answered,
        "format_compat": answered,
        "correct_lenient": verdict is Verdict.CORRECT,
        "vote": [Verdict.CORRECT, Verdict.WRONG].index(verdict) if answered else None,
        "id": name or str(next(NAMES)),
    } | changes


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


def test_a_gain_in_format_is_told_from_a_gain_in_ability():
    boxed = sample(Verdict.CORRECT)
    bare = sample(Verdict.UNPARSED, correct_lenient=True)
    tagless = sample(Verdict.CORRECT, format=False)
    cut = sample(Verdict.TRUNCATED)
    metrics = compute_metrics([boxed, bare, tagless, cut])
    assert metrics["accuracy"]["value"] == 0.5
    assert metrics["accuracy_strict"]["value"] == 0.25
    assert metrics["accuracy_lenient"]["value"] == 0.75
    assert metrics["accuracy_completed"]["value"] == pytest.approx(2 / 3)
    assert metrics["format_by_correct"] == {
        "formatted_correct": 1, "formatted_incorrect": 0, "unformatted_correct": 1, "unformatted_incorrect": 2,
    }  # fmt: skip
    assert compute_metrics([cut])["accuracy_completed"] is None


def test_accuracy_by_length_uses_the_edges_of_the_run_compared_with():
    samples = [sample(Verdict.CORRECT if n <= 600 else Verdict.WRONG, n) for n in range(100, 1100, 100)]
    metrics = compute_metrics(samples)
    own = metrics["accuracy_by_length"]
    assert own["edges"] == [100, 280, 460, 640, 820, 1000]
    assert own["bins"] == [{"n": 2, "accuracy": a} for a in (1, 1, 1, 0, 0)]
    other = accuracy_by_length([sample(Verdict.CORRECT, 5000)], own["edges"])
    assert [b["n"] for b in other["bins"]] == [0, 0, 0, 0, 1]
    assert metrics["accuracy_within_budget"] == {"512": 0.5, "1024": 0.6}


def test_the_table_shows_the_mean_of_several_benchmarks():
    metrics = compute_metrics([sample(Verdict.CORRECT), sample(Verdict.WRONG)])
    one = {**metrics, "benchmark": "x", "limit": None}
    assert "mean" not in table([one])
    assert "50.0%" in table([one, one]).split("mean")[1]


def test_intervals_of_length_percentiles_cover_them():
    """About 95 % of 40 draws, always the same, of 60 questions with 4 samples each, alike within a question."""
    generator = np.random.default_rng(1)
    truth = np.percentile(np.exp(generator.normal(5, 0.5, 10**6) + generator.normal(0, 0.3, 10**6)), 50)
    covered = 0
    for _ in range(40):
        questions = generator.normal(5, 0.5, (60, 1)) + generator.normal(0, 0.3, (60, 4))
        low, high = percentile_intervals(np.exp(questions).tolist())["p50"]
        covered += low <= truth <= high
    assert 34 <= covered <= 40
    assert percentile_intervals([[1], [2], [9]]) == percentile_intervals([[1], [2], [9]])
    assert percentile_intervals([]) == {} and percentile_intervals([[5], [5, 5]])["p99"] == (5.0, 5.0)
