"""A completion that the verifier could not judge teaches nothing, whatever it says, under every loss."""

import json
import math

import pytest
import torch
from conftest import REPOSITORY, launch
from safetensors.torch import load_file
from scripted_grpo import GRADER, LOSSES, RIGHT, UNDECIDED, WRONG, one_group, take_a_step

from posttrain.grading.grader import Grade, Verdict
from posttrain.methods.grpo import guard
from posttrain.methods.grpo.undecided import groups_with_signal

FIRST, SECOND = UNDECIDED
NAN = float("nan")


def generation(undecided: str) -> list[str]:
    """Two groups of eight: 4 right, 3 wrong, 1 undecided; and 1 right, 6 wrong, 1 undecided."""
    return [*[RIGHT] * 4, *[WRONG] * 3, undecided, RIGHT, *[WRONG] * 3, undecided, *[WRONG] * 3]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.fixture(scope="module")
def model(models):
    yield models / "qwen2"
    GRADER.pool.close()


@pytest.fixture(scope="module")
def unmoved(model, tmp_path_factory):
    """The weights before any step."""
    weights, _, _ = take_a_step(model, tmp_path_factory.mktemp("still"), generation(FIRST), learning_rate=0.0)
    return weights


def test_an_undecided_completion_leaves_mean_and_spread_of_its_group(model, tmp_path):
    _, lines, figures = take_a_step(model, tmp_path, generation(FIRST))
    assert [line["verdict"] for line in lines[:8]] == [*["correct"] * 4, *["wrong"] * 3, "timeout"]
    assert lines[7]["rewards"] == {"accuracy": None, "boxed_format": None}
    spread = math.sqrt((4 * (3 / 7) ** 2 + 3 * (4 / 7) ** 2) / 6)
    expected = [*[(1 - 4 / 7) / (spread + 1e-4)] * 4, *[(0 - 4 / 7) / (spread + 1e-4)] * 3, 0]
    assert [line["advantage"] for line in lines[:8]] == pytest.approx(expected, abs=1e-5)
    assert figures["undecided"] == 2 and figures["verdict/timeout"] == 2 / 16
    assert figures["reward"] == pytest.approx(5 / 14) and figures["effective_prompts"] == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_depends_on_what_an_undecided_completion_says(loss, model, unmoved, tmp_path):
    keys = {"loss_type": loss, **LOSSES[loss]}
    one, _, _ = take_a_step(model, tmp_path / "one", generation(FIRST), **keys)
    other, _, _ = take_a_step(model, tmp_path / "other", generation(SECOND), **keys)
    assert same(one, other)
    assert not same(one, unmoved)


@pytest.mark.parametrize(
    "keys",
    [
        {"subtract_mean": False}, {"subtract_mean": False, "loss_type": "dapo"}, {"beta": 0.5},
        {"scale_rewards": "batch"}, {"scale_rewards": "none", "loss_type": "dapo"},
        {"multi_objective_aggregation": "normalize_then_sum"}, {"num_iterations": 2},
    ],
    ids=str,
)  # fmt: skip
def test_no_setting_brings_it_back(keys, model, tmp_path):
    one, lines, _ = take_a_step(model, tmp_path / "one", generation(FIRST), **keys)
    other, _, _ = take_a_step(model, tmp_path / "other", generation(SECOND), **keys)
    assert same(one, other)
    assert [line["advantage"] for line in lines if line["verdict"] == "timeout"] == [0, 0]
    if not keys.get("subtract_mean", True):
        assert [line["advantage"] for line in lines[:8]] == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dapo", "vespo"])
def test_a_generation_without_a_verdict_moves_nothing(loss, model, unmoved, tmp_path):
    after, _, figures = take_a_step(model, tmp_path / "after", [FIRST] * 16, loss_type=loss, **LOSSES[loss])
    assert same(unmoved, after) and figures["loss"] == 0
    assert (figures["undecided"], figures["unrewarded"], figures["effective_prompts"]) == (16, 16, 0)


def test_none_of_a_function_still_means_that_it_does_not_apply(model, tmp_path):
    """Its completions keep their place in the group, with what the other functions say of them."""
    rewards = ("own_rewards:none_applies", "accuracy")
    _, lines, figures = take_a_step(model, tmp_path, [*[RIGHT] * 4, *[WRONG] * 12], rewards, reward_weights=[1.0, 1.0])
    assert lines[0]["rewards"] == {"none_applies": None, "accuracy": 1.0}
    assert [line["advantage"] > 0 for line in lines[:8]] == [True] * 4 + [False] * 4
    assert (figures["undecided"], figures["unrewarded"]) == (0, 0)


@pytest.mark.slow
def test_two_processes_leave_it_out_alike(model, tmp_path):
    script = REPOSITORY / "tests/helpers/scripted_grpo.py"
    done = launch(REPOSITORY / "accelerate_configs/cpu_2proc.yaml", script, model, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    _, alone, _ = take_a_step(model, tmp_path / "alone", one_group(FIRST), num_generations=16)
    for loss in LOSSES:
        one, other = (load_file(tmp_path / f"{loss}-{n}" / "weights.safetensors") for n in (0, 1))
        assert same(one, other), loss
        lines = [json.loads(line) for line in (tmp_path / f"{loss}-0/completions.jsonl").read_text().splitlines()]
        assert [line["advantage"] for line in lines] == pytest.approx([line["advantage"] for line in alone])


@pytest.mark.parametrize(
    ("rewards", "weights", "summed", "flat"),
    [
        ([[1.0], [0.0], [NAN], [1.0], [1.0], [1.0]], [1.0], True, 0.5),
        ([[1.0], [NAN], [NAN], [NAN], [NAN], [NAN]], [1.0], True, 1.0),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [1.0, 1.0], True, 1.0),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [1.0, 1.0], False, 0.0),
        ([[1.0, 0.0], [1.0, 1.0], [1.0, NAN]], [1.0, 0.0], False, 1.0),
    ],
)
def test_groups_without_signal(rewards, weights, summed, flat):
    found = 1 - groups_with_signal(torch.tensor(rewards), torch.tensor(weights), 3, summed).float().mean().item()
    assert found == pytest.approx(flat)


def test_the_guard_neither_ends_a_run_nor_praises_it_for_a_busy_verifier():
    start = {"step": 0, "accuracy": 1.0, "correct": [1] * 30}
    assert guard.fall(start, {"step": 1, "accuracy": 1.0, "correct": [None] * 20 + [1] * 10}) is None
    assert guard.fall(start, {"step": 1, "accuracy": 0.0, "correct": [None] * 10 + [0] * 20})
    grades = [Grade(v, "3") for v in (Verdict.CORRECT, Verdict.TIMEOUT, Verdict.ERROR, Verdict.WRONG)]
    assert guard.outcomes(grades) == ([1, None, None, 0], 0.5)
