"""The probe before step 1: it can be written whatever the rewards return, and says what is wrong with them."""

import json

import pytest
from scripted_grpo import GRADER, RIGHT, UNDECIDED, WRONG, build

from posttrain.errors import PosttrainError
from posttrain.methods.grpo.probe import PROBE_FILE, SignalProbe
from posttrain.recipe.grpo_options import GrpoOptions

TEXTS = [*[RIGHT] * 4, *[WRONG] * 12]


@pytest.fixture(scope="module", autouse=True)
def end_the_verifier():
    yield
    GRADER.pool.close()


def probed(models, out, reward: str, mode: str, texts: list[str] = TEXTS):
    """A trainer on scripted completions with the probe that src/grpo.py would give it."""
    trainer = build(models / "qwen2", out, texts, (reward,))
    options = GrpoOptions(
        trainer="grpo", dataset_name="data", prompt="question_only", reward_funcs=[reward], probe=mode
    )
    trainer.add_callback(SignalProbe(trainer, options, out))
    return trainer


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    ("reward", "texts"), [("own_rewards:none_applies", TEXTS), ("accuracy", [UNDECIDED[0]] * 16)], ids=["none", "busy"]
)
def test_a_probe_without_any_reward_says_so(models, tmp_path, reward, texts):
    probed(models, tmp_path, reward, "warn", texts).train()
    written = json.loads((tmp_path / PROBE_FILE).read_text(), parse_constant=no_constant)
    assert written["reward"] is None and written["unrewarded"] == written["completions"] == 16
    assert "no completion got a reward" in written["refusals"][0]
    with pytest.raises(PosttrainError, match="no completion got a reward"):
        probed(models, tmp_path, reward, "refuse", texts).train()
    for line in (tmp_path / "completions.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)


@pytest.mark.parametrize("reward", ["nan", "infinite", "text", "raises"])
def test_a_reward_that_is_none_ends_the_run_before_its_first_step(models, tmp_path, reward):
    trainer = probed(models, tmp_path, f"own_rewards:{reward}", "warn")
    with pytest.raises(PosttrainError, match=f"reward_funcs: 'own_rewards:{reward}'"):
        trainer.train()
    assert trainer.state.global_step == 0
