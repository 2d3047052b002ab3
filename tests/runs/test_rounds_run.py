"""Rounds of expert iteration end to end on the tiny world, from an early-stopped fine-tuning, with kills."""

import contextlib
import json
import random
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, SEED, kill, must, run_script, start

from posttrain.data.rows import read_parquet
from posttrain.evaluation.comparison import compare, mcnemar
from posttrain.pipelines import likelihood
from posttrain.pipelines.rollouts import Candidate, Rollout, read_rollouts

pytestmark = pytest.mark.slow
CPU = "accelerate_configs/cpu.yaml"
BENCHMARKS = ("tiny_1step", "tiny_2step", "tiny_3step", "tiny_4step")
SHORT = ("--num_rounds", 2)
KILLS = 10  # of a whole run


@pytest.fixture(scope="session")
def world(whole_tiny_data, early_sft) -> list[object]:
    """Flags that name the tiny world's data and an undertrained model."""
    data = ("--dataset_name", whole_tiny_data / "tiny_math", "--data_dir", whole_tiny_data, "--seed", SEED)
    return ["src/expert_iteration.py", "recipes/tiny_ei.yaml", "--model_name_or_path", early_sft, *data]


def arguments(world: list[object], output_dir: Path, *more: object) -> list[object]:
    return [*world, "--output_dir", output_dir, *more]


@pytest.fixture(scope="session")
def finished(once, world) -> Path:
    """Two rounds; three are in LOG.md."""
    return once("rounds", lambda out: must(run_script(*arguments(world, out / "run", *SHORT)))) / "run"


def test_rounds_raise_accuracy_on_held_out_questions(finished):
    """Of 800 questions, seeds 0, 1 and 2 gain 24.5, 8.5 and 20.7 points; McNemar's p of 0.01 asks for about 4.5."""
    records = json.loads((finished / "rounds.json").read_text())
    first, last = (record["evaluation"]["all"]["value"] for record in (records[0], records[-1]))
    pairs = [compare(finished / "round_0/evals" / name, finished / "round_2/evals" / name) for name in BENCHMARKS]
    p = mcnemar(sum(len(c.worse) for c in pairs), sum(len(c.better) for c in pairs))
    assert last > first
    assert p < 0.01
    assert records[1]["new_solutions"] > 0 and records[1]["entropy"] > 0 and records[1]["tokens_trained"] > 0


def test_every_trained_row_is_a_verified_sample_of_that_round(finished):
    for number in (1, 2):
        directory = finished / f"round_{number}"
        verified = {
            (rollout.prompt[-1]["content"], candidate.text)
            for rollout in read_rollouts(directory / "rollouts")
            for candidate in rollout.candidates
            if candidate.verdict == "correct"
        }
        rows = read_parquet(directory / "data/train.parquet")
        assert {(row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in rows} <= verified
        assert run_script("data_prep/rejection.py", "--audit", directory / "data").returncode == 0


def test_every_round_trains_on_from_the_one_before_and_the_last_has_the_runs_name(finished):
    runs = [json.loads((finished / f"round_{n}/sft/run.json").read_text()) for n in (1, 2)]
    assert runs[1]["inputs"]["model"]["parent_run"] == runs[0]["run_id"]
    assert (finished / "final").resolve() == (finished / "round_2/sft/final").resolve()
    assert (finished / "rounds.svg").stat().st_size > 5000


def test_a_finished_run_starts_no_stage_again(finished, world):
    before = (finished / "rounds.json").read_bytes()
    done = run_script(*arguments(world, finished, *SHORT))
    assert done.returncode == 0 and "$ " not in done.stdout
    assert (finished / "rounds.json").read_bytes() == before


def test_a_run_of_other_settings_is_refused(finished, world):
    done = run_script(*arguments(world, finished, *SHORT, "--temperature", 0.9))
    assert done.returncode == 2 and "differs in temperature" in done.stderr


def test_sampling_that_is_killed_ends_with_the_same_bytes(finished, tmp_path):
    command = ["src/sample.py", finished / "round_1/sample.yaml", "--output_dir", tmp_path]
    partial, lines = tmp_path / "rollouts.partial.jsonl", []
    process = start([*command, "--num_workers", 2], CPU)  # and it goes on with one
    while process.poll() is None and len(lines) < 20:
        lines = partial.read_bytes().splitlines() if partial.exists() else []
    kill(process)
    assert lines and not (tmp_path / "metrics.json").exists()
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    for name in ("rollouts.jsonl", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (finished / "round_1/rollouts" / name).read_bytes()


def test_log_probability_and_entropy_are_those_of_each_completion_alone():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(REPOSITORY / "assets/tiny_base")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    prompt = tokenizer("Ana has 3 coins.")["input_ids"]
    texts = {"stop": "3+4=7. The answer is 7.", "length": "3"}
    sampled = [Candidate(text, 1, finish, None, "wrong") for finish, text in texts.items()]
    found = likelihood.means(sampled, prompt, model, tokenizer)
    measured = likelihood.with_means(Rollout("q", [], "7", sampled), found)
    for candidate in measured.candidates:
        ids = tokenizer(candidate.text)["input_ids"] + [tokenizer.eos_token_id] * (candidate.finish_reason == "stop")
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert candidate.logprob == pytest.approx(log_p[range(len(ids)), ids].mean().item(), abs=2e-4)
        assert candidate.entropy == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), abs=2e-4)


def test_a_round_with_nothing_accepted_is_skipped_and_says_why(world, tmp_path):
    small = ["--num_rounds", 1, "--num_questions", 10, "--max_new_tokens", 4, "--benchmarks", "tiny_1step"]
    small += ["--limit", 5]
    done = run_script(*arguments(world, tmp_path / "run", *small))
    assert done.returncode == 0, done.stderr
    assert "round 1 is skipped" in done.stderr and "cut off before an answer" in done.stderr
    (before, after) = json.loads((tmp_path / "run/rounds.json").read_text())
    assert after["evaluation"] == before["evaluation"] and after["accepted"] == 0


@pytest.mark.exhaustive
def test_a_run_that_is_killed_again_and_again_ends_as_one_never_killed(world, tmp_path):
    small = ("--num_questions", 120, "--num_candidates", 4, "--limit", 40, "--save_steps", 5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script(*arguments(world, whole, *small)).returncode == 0
    generator, command = random.Random(0), arguments(world, killed, *small)
    for _ in range(KILLS):
        process = start(command, CPU)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(3, 30))
        kill(process)
    assert run_script(*command).returncode == 0
    for name in ("rounds.json", *(f"round_{n}/{path}" for n in (1, 2, 3) for path in WHOLE)):
        theirs = json.loads((killed / name).read_text()) if name == "rounds.json" else (killed / name).read_bytes()
        ours = json.loads((whole / name).read_text()) if name == "rounds.json" else (whole / name).read_bytes()
        assert theirs == ours, name


WHOLE = (
    "rollouts/rollouts.jsonl",
    "data/train.parquet",
    "sft/final/model.safetensors",
    "evals/tiny_1step/samples.jsonl",
)
