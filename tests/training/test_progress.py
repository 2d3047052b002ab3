"""A run's progress: figures a person reads at a glance, once in a while, and no dictionary."""

import re

import pytest
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from posttrain.training import progress
from posttrain.training.progress import ProgressBar, ProgressLines, headline

SFT = {
    "loss": 0.14132, "grad_norm": 0.35, "learning_rate": 0.0004, "tokens_seen": 96685, "tokens_per_second": 11797.4,
    "mean_token_accuracy": 0.988, "entropy": 0.31, "epoch": 2.27,
}  # fmt: skip
GRPO = {
    "loss": 2.3e-09, "seconds/generation": 2.1, "seconds/reward": 0.9, "completions/mean_length": 28.75,
    "verdict/correct": 0.21, "rewards/accuracy/mean": 0.21, "reward": 0.2109375, "reward_std": 0.4,
    "guard/accuracy": 0.55,
}  # fmt: skip
EVALUATION = {
    "eval_loss": 0.05192, "eval_runtime": 0.9, "eval_mean_token_accuracy": 0.99, "eval_gsm8k/accuracy": 0.25,
    "eval_gsm8k/accuracy_low": 0.2, "eval_mean/accuracy": 0.25, "epoch": 4.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("logs", "prefix", "text"),
    [
        (SFT, "", "loss 0.1413, 11,797 tokens/s"),
        (GRPO, "", "loss 2.3e-09, reward 0.2109, guard/accuracy 0.55"),
        ({"loss": 0.6, "rewards/accuracies": 0.75, "rewards/margins": 0.1}, "", "loss 0.6, rewards/accuracies 0.75"),
        (EVALUATION, "eval_", "loss 0.05192, gsm8k/accuracy 0.25, mean/accuracy 0.25"),
        ({"loss": None, "reward": "none"}, "", ""),
        ({"loss": float("nan")}, "", "loss nan"),
    ],
)
def test_the_figures_of_a_log_that_are_read_at_a_glance(logs, prefix, text):
    assert headline(logs, prefix) == text


class Arguments:
    output_dir = "outputs/tiny_sft"


def run(callback, steps: int, every: int = 1, evaluate_at: tuple[int, ...] = ()) -> None:
    state = TrainerState(max_steps=steps)
    state.is_world_process_zero = True
    callback.on_train_begin(Arguments, state, None)
    for state.global_step in range(1, steps + 1):
        if state.global_step % every == 0:
            callback.on_log(Arguments, state, None, logs=dict(SFT))
        if state.global_step in evaluate_at:
            callback.on_log(Arguments, state, None, logs=dict(EVALUATION))
    callback.on_log(Arguments, state, None, logs={"train_runtime": 3.0, "train_loss": 0.5})


@pytest.mark.parametrize("steps, every", [(176, 1), (176, 10), (60, 7), (1000, 1)])
def test_a_short_run_is_four_lines_in_a_log(capsys, steps, every):
    run(ProgressLines(), steps, every)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= progress.LINES
    form = rf"tiny_sft: step [\d,]+ of {steps:,}: loss 0\.1413, 11,797 tokens/s, \d+:\d\d left"
    assert all(re.fullmatch(form, line) for line in lines)


def test_a_long_run_shows_life(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1)
    run(ProgressLines(), 40)
    assert len(capsys.readouterr().err.splitlines()) == 40


def test_every_evaluation_is_a_line(capsys):
    run(ProgressLines(), 10, every=20, evaluate_at=(3, 9))
    assert capsys.readouterr().err.splitlines() == [
        f"tiny_sft: step {step} of 10, held out: loss 0.05192, gsm8k/accuracy 0.25, mean/accuracy 0.25"
        for step in (3, 9)
    ]


def test_other_processes_say_nothing(capsys):
    state = TrainerState(max_steps=1, global_step=1)
    state.is_world_process_zero = False
    callback = ProgressLines()
    callback.on_train_begin(Arguments, state, None)
    callback.on_log(Arguments, state, None, logs=dict(SFT))
    assert capsys.readouterr() == ("", "")


class TrainerStub:
    """What of transformers' Trainer the choice of a callback touches."""

    def __init__(self, callback, disable_tqdm: bool) -> None:
        self.callbacks, self.args = [callback], type("Arguments", (), {"disable_tqdm": disable_tqdm})

    def pop_callback(self, kind):
        found = [callback for callback in self.callbacks if isinstance(callback, kind)]
        self.callbacks = [callback for callback in self.callbacks if callback not in found]
        return found[0] if found else None

    def add_callback(self, callback) -> None:
        self.callbacks.append(callback)


@pytest.mark.parametrize(
    ("theirs", "disable_tqdm", "terminal", "ours"),
    [
        (ProgressCallback(), False, True, ProgressBar),
        (ProgressCallback(), False, False, ProgressLines),
        (PrinterCallback(), True, True, ProgressLines),
    ],
)
def test_the_callback_of_transformers_is_replaced(monkeypatch, theirs, disable_tqdm, terminal, ours):
    monkeypatch.setattr(progress, "can_draw", lambda stream: terminal)
    trainer = TrainerStub(theirs, disable_tqdm)
    progress.show_progress(trainer)
    assert [type(callback) for callback in trainer.callbacks] == [ours]


def test_the_table_of_a_notebook_stays():
    trainer = TrainerStub("a table", False)
    progress.show_progress(trainer)
    assert trainer.callbacks == ["a table"]
