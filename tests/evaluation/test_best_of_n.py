"""Best of n: which sample is chosen, and what its accuracy is held against."""

import pytest

from posttrain.evaluation.best_of_n import Sampled, check_alike, choose, compare, outcomes, read_sampled
from posttrain.evaluation.comparison import ComparisonError
from posttrain.evaluation.results import ResultError


@pytest.mark.parametrize(
    "rewards, place", [([0.1, 0.3, 0.2], 1), ([None, -5.0], 1), ([0.5, 0.5], 0), ([None, None], 0)]
)
def test_the_highest_reward_is_chosen(rewards, place):
    assert choose(rewards) == place


def sampled(temperature: float, verdicts: dict[str, str], **changes) -> Sampled:
    """`verdicts` holds c or w for each sample of a question."""
    questions = {
        i: [{"id": i, "sample": n, "verdict": "correct" if v == "c" else "wrong"} for n, v in enumerate(row)]
        for i, row in verdicts.items()
    }
    decoding = {"temperature": temperature, "num_samples": len(next(iter(verdicts.values())))}
    metrics = {name: name for name in ("benchmark", "data_sha256", "limit", "prompt", "grader", "checkpoint")}
    return Sampled({**metrics, "decoding": decoding, **changes}, questions)


def test_accuracies_and_the_paired_test():
    eight = sampled(0.7, {"a": "wwc", "b": "cww", "c": "www", "d": "wcw"})
    greedy = sampled(0, {"a": "w", "b": "c", "c": "w", "d": "w"})
    rewards = {"a": [0.0, None, 1.0], "b": [0.0, 2.0, 1.0], "c": [1.0, 2.0, 3.0], "d": [0.0, 1.0, 0.5]}
    result = compare("x", *outcomes(eight, greedy, rewards))
    assert (result.greedy, result.best, result.oracle, result.mean) == (0.25, 0.5, 0.75, 0.25)
    assert result.difference == 0.25
    assert result.p == 1.0  # two questions better, one worse


def test_only_results_of_the_same_weights_and_questions_are_compared():
    eight, greedy = sampled(0.7, {"a": "cw"}), sampled(0, {"a": "c"})
    check_alike(eight, greedy)
    with pytest.raises(ComparisonError, match="checkpoint differs"):
        check_alike(eight, sampled(0, {"a": "c"}, checkpoint="another"))
    with pytest.raises(ComparisonError, match="temperature: 0"):
        check_alike(eight, eight)


def test_an_unfinished_evaluation_is_refused(tmp_path):
    with pytest.raises(ResultError, match="missing"):
        read_sampled(tmp_path)
