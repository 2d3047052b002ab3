"""A study of batch sizes: the search, trials that are kept, the plan beside them, and what is wrong in one line."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain.pipelines.study import trial as trials
from posttrain.pipelines.study.batch_size import (
    BatchStudyError,
    planned,
    read_batch_study,
    read_trials,
    run_batch_study,
    search,
)
from posttrain.pipelines.study.heat_map import PICTURE, TABLE, write_results
from posttrain.pipelines.study.trial import FAILED, FITS, MEMORY, Outcome, outcome_of
from posttrain.recipe.reader import RecipeError

STUDY = REPOSITORY / "studies/batch_size.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@given(st.integers(0, 300), st.integers(1, 200))
def test_the_search_finds_the_largest_and_tries_few(limit, largest):
    tried = []

    def fits(rows):
        assert 1 <= rows <= largest and rows not in tried
        tried.append(rows)
        return rows <= limit

    assert search(fits, largest) == min(limit, largest)
    assert len(tried) <= 2 * largest.bit_length() + 1


def small(tmp_path, **changes):
    study = read_batch_study(STUDY)
    return replace(study, output_dir=str(tmp_path / "out"), **changes)


def test_every_shipped_study_can_be_read():
    shipped = sorted(Path("studies").glob("batch_size*.yaml"))
    assert len(shipped) >= 2 and all(read_batch_study(path).cells() for path in shipped)


def test_trials_are_kept_and_never_taken_twice(tmp_path):
    """Memory here is a million bytes for a token, in a budget of 1.5 GiB."""
    study, taken = small(tmp_path, largest=8), []

    def run(trial, budget):
        taken.append(trial)
        peak = 10**6 * trial.rows * trial.length
        if len(taken) == 5:
            raise KeyboardInterrupt
        return Outcome(FITS if peak <= budget else MEMORY, peak, 0.1)

    with pytest.raises(KeyboardInterrupt):
        run_batch_study(study, run)
    with (tmp_path / "out/trials.jsonl").open("a") as file:
        file.write('{"cut": ')
    results = run_batch_study(study, run)
    assert len(taken) - 1 == len({(t.rows, *sorted(map(str, vars(t).items()))) for t in taken})
    assert [(r["cell"]["length"], r["rows"]) for r in results[:4]] == [(256, 6)] * 4
    assert results[0]["peak"] == 6 * 256 * 10**6 and results[-1]["rows"] == 1
    text = write_results(results, tmp_path / "out")
    assert text == (tmp_path / "out" / TABLE).read_text() and text.count("\n") == 2 + len(study.cells())
    assert "<svg" in (tmp_path / "out" / PICTURE).read_text()
    before = len(taken)
    run_batch_study(study, run)
    assert len(taken) == before
    with pytest.raises(BatchStudyError, match="are of other settings"):
        read_trials(tmp_path / "out/trials.jsonl", replace(study, budget_gib=2))


def test_a_trial_that_fails_for_another_reason_ends_the_study_and_is_tried_again(tmp_path):
    study = small(tmp_path)
    with pytest.raises(BatchStudyError, match=r"1 rows: failed: no such thing"):
        run_batch_study(study, lambda *_: Outcome(FAILED, 0, 0.1, "no such thing"))
    assert read_trials(Path(study.output_dir) / "trials.jsonl", study) == []


def test_the_plan_knows_checkpointing_and_attention(tmp_path):
    study = small(tmp_path, largest=10**6)
    by_cell = {tuple(cell.values())[1:4]: planned(study, cell) for cell in study.cells()}
    assert by_cell[256, True, "varlen_sdpa"] > by_cell[256, False, "varlen_sdpa"] > by_cell[512, False, "varlen_sdpa"]
    assert by_cell[1024, False, "eager"] < by_cell[1024, False, "varlen_sdpa"]


@pytest.mark.parametrize(
    "output, code, ended",
    [
        ('noise\ntrial: {"peak": 7}\n', 0, FITS), ("", -9, MEMORY), ("CUDA out of memory. Tried", 1, MEMORY),
        ("DefaultCPUAllocator: can't allocate memory", 1, MEMORY), ("ValueError: no", 1, FAILED), ("", 0, FAILED),
    ],
)  # fmt: skip
def test_how_a_trial_ended(output, code, ended):
    assert outcome_of(output, code, 5, 1.0).ended == ended


def test_a_trial_over_its_budget_is_ended_with_its_children(monkeypatch, tmp_path):
    """A child that holds 200 MiB, started by a process that holds little."""
    held = "import time; held = bytearray(200 * 2**20); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    monkeypatch.setattr(trials, "COMMAND", [sys.executable, "-c", code])
    study = small(tmp_path)
    outcome = trials.watch(study.trial(study.cells()[0], 1), 100 * 2**20)
    assert outcome.ended == MEMORY and outcome.peak > 100 * 2**20


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"grid": {"recipe": ["recipes/tiny_sft.yaml"]}}, "grid: length: expected a list"),
        ({"grid": {"length": [64], "recipe": ["recipes/none.yaml"]}}, "recipes/none.yaml: expected recipes of sft"),
        ({"grid": {"length": [64], "recipe": ["recipes/tiny_grpo.yaml"]}}, "expected recipes of sft, dpo, distill"),
        ({"grid": {"length": [1], "recipe": ["recipes/tiny_sft.yaml"]}}, "grid: length: 1: expected int"),
        ({"grid": {"speed": [1]}}, "grid: speed: unknown"),
        ({"budget_gib": None}, "budget_gib: None: expected GiB"),
        ({"largest": 0}, "largest: 0: expected a number of rows"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"override": {"learning_rat": 1}}, "learning_rat: unknown key"),
    ],
)
def test_a_file_that_is_no_such_study_is_told_in_one_line(tmp_path, changes, said):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(STUDY.read_text()) | changes))
    with pytest.raises((BatchStudyError, RecipeError)) as raised:
        read_batch_study(path)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.exhaustive
def test_three_real_steps_of_every_method(tmp_path):
    for recipe in ("recipes/tiny_sft.yaml", "recipes/tiny_distill.yaml"):
        study = small(tmp_path, override={"model_name_or_path": "assets/tiny_base", "random_init": True})
        cell = {"recipe": recipe, "length": 64}
        outcome = trials.watch(study.trial(cell, 2), study.budget)
        assert outcome.ended == FITS and outcome.peak > 2**28, json.dumps(outcome.reason)
