"""Dynamic sampling end to end: killed inside refills, on two processes, with the history that chooses questions."""

import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import LAUNCHER, kill, kill_when, launch, must, record, run_script, start
from test_grpo_run import SMALL, arguments, assert_identical, lines

from posttrain.methods.grpo.dynamic_sampling import QUESTIONS_FILE, REASONS, STATE_FILE

pytestmark = pytest.mark.slow
DYNAMIC = {
    **SMALL, "dynamic_sampling": "true", "max_generation_batches": 4, "question_sampling": "informative",
    "num_train_examples": 30, "num_completions_to_print": 100,
}  # fmt: skip
CPU = "accelerate_configs/cpu.yaml"


def assert_same_questions(whole: Path, resumed: Path) -> None:
    assert_identical(whole, resumed)
    assert (whole / QUESTIONS_FILE).read_bytes() == (resumed / QUESTIONS_FILE).read_bytes()
    last = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    assert (last / STATE_FILE).read_bytes() == (resumed / last.name / STATE_FILE).read_bytes()


def assert_accounted(out: Path, places: int, steps: int) -> None:
    """Every question that was asked is trained on or skipped with its reason, and all of its completions are there."""
    asked, totals = lines(out / QUESTIONS_FILE), record(out)["result"]["questions"]
    assert totals["asked"] == len(asked) == totals["trained"] + sum(totals[reason] for reason in REASONS)
    outcomes = Counter(line["outcome"] for line in asked if not line["trained"])
    assert {reason: totals[reason] for reason in REASONS[:-1]} == {reason: outcomes[reason] for reason in REASONS[:-1]}
    trained = Counter(line["step"] for line in asked if line["trained"])
    assert sorted({line["step"] for line in asked}) == list(range(1, steps + 1)) and max(trained.values()) <= places
    completions = lines(out / "completions.jsonl")
    assert len(completions) == len(asked) * int(DYNAMIC["num_generations"])
    assert all(line["weights_step"] == line["step"] - 1 for line in completions)  # so their log-probabilities are held
    for line in lines(out / "metrics.jsonl"):
        assert line["effective_prompts"] == line["questions/trained"] == trained[line["step"]]


def test_every_question_that_was_asked_is_accounted_for(whole_tiny_data, early_sft, tmp_path):
    must(run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "run", **DYNAMIC)))
    assert_accounted(tmp_path / "run", places=4, steps=4)


def test_it_learns_more_in_as_many_steps_of_few_prompts(whole_tiny_data, early_sft):
    few = ("--num_generations", 4, "--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 1)
    paths = ("--model", early_sft, "--dataset", whole_tiny_data / "tiny_math", "--runs", "dynamic", "--seeds", 1)
    done = must(run_script("speed/bench_rl.py", *paths, "--steps", 60, "--every", 20, *few))
    plain, dynamic = re.search(r" → ([\d.]+)% in 60 steps(?s:.*) ended at ([\d.]+)%", done.stdout).groups()
    assert float(dynamic) >= float(plain) + 5, done.stdout


@pytest.mark.exhaustive
def test_ten_kills_inside_refills_change_no_byte(whole_tiny_data, early_sft, tmp_path):
    changes = {**DYNAMIC, "max_steps": 6, "probe": "off"}  # whose completions lie in the same file for a while
    must(run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "whole", **changes)))
    rounds = [line["round"] for line in lines(tmp_path / "whole" / QUESTIONS_FILE)]
    # A refill under way: the completions of the round before are written, those of the next are not.
    size = int(DYNAMIC["num_generations"])
    refills = [i * size for i, number in enumerate(rounds) if number > 1 and rounds[i - 1] < number]
    command = arguments(whole_tiny_data, early_sft, tmp_path / "killed", **changes)
    draw = random.Random(0)
    for moment in sorted(draw.choices(refills, k=10)):
        process, file = start(command, CPU), tmp_path / "killed/completions.jsonl"
        while process.poll() is None and written(file) >= moment:
            time.sleep(0.001)  # until it has forgotten what came after its checkpoint
        while process.poll() is None and written(file) < moment:
            time.sleep(0.001)
        time.sleep(0.05 * draw.random())
        assert process.poll() is None
        kill(process)
    must(run_script(*command))
    assert len(record(tmp_path / "killed")["sessions"]) == 11
    assert_same_questions(tmp_path / "whole", tmp_path / "killed")


def written(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.exhaustive
def test_two_processes_share_refills_and_resume_exactly(whole_tiny_data, early_sft, tmp_path):
    changes = {**DYNAMIC, "per_device_train_batch_size": 4}
    config = "accelerate_configs/cpu_2proc.yaml"
    must(launch(config, *arguments(whole_tiny_data, early_sft, tmp_path / "whole", **changes)))
    assert_accounted(tmp_path / "whole", places=4, steps=4)
    command = arguments(whole_tiny_data, early_sft, tmp_path / "killed", **changes)
    kill_when(tmp_path / "killed/checkpoint-2/complete.json", [*LAUNCHER[1:], config, *command], config=None)
    must(launch(config, *command))
    assert_same_questions(tmp_path / "whole", tmp_path / "killed")


def test_wrong_combinations_have_one_line_each(whole_tiny_data, early_sft, tmp_path):
    changes = {
        **DYNAMIC, "scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum",
        "loss_type": "no_baseline",
    }  # fmt: skip
    done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "o", **changes))
    assert done.returncode == 2 and not (tmp_path / "o").exists()
    for key in ("scale_rewards: batch", "multi_objective_aggregation: normalize_then_sum", "loss_type: no_baseline"):
        assert key in done.stderr
    few = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "o", **{**DYNAMIC, "num_train_examples": 3}))
    assert few.returncode == 2 and "3 different questions are fewer than the 4" in few.stderr
    alone = {**SMALL, "max_generation_batches": 3}
    done = run_script(*arguments(whole_tiny_data, early_sft, tmp_path / "o", **alone))
    assert done.returncode == 2 and "needs dynamic_sampling: true" in done.stderr
