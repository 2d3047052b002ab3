"""A run that starts tells its plan, is refused where it cannot fit, and keeps the plan beside what it took."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, record
from tiny_trainer import CPU

from posttrain.errors import PosttrainError
from posttrain.plan import measured
from posttrain.plan.devices import Device, Machine
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.recipe_plan import Plan, make_plan
from posttrain.plan.start import plan_start
from posttrain.recipe.reader import read_recipe

SFT = "recipes/tiny_sft.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def values(*overrides):
    return read_recipe([SFT, "--max_steps", "10", *map(str, overrides)], "sft").values


def test_a_tiny_recipe_fits_this_machine_and_one_of_a_million_rows_is_refused(capsys):
    plan = plan_start(values(), CPU, "refuse", SFT)
    assert isinstance(plan, Plan) and plan.fits and plan.sizes.batch.attention == "sdpa"
    too_many = values("--per_device_train_batch_size", 1_000_000)
    with pytest.raises(PosttrainError, match=r"does not fit: at least [\d.]+ GiB are needed.*plan: warn") as raised:
        plan_start(too_many, CPU, "refuse", SFT)
    assert "per_device_train_batch_size: 500000 and gradient_accumulation_steps: 2" in str(raised.value)
    assert plan_start(too_many, CPU, "warn", SFT).fits is False
    assert "does not fit" in capsys.readouterr().err


def test_rows_that_may_be_short_are_no_reason_to_refuse(capsys):
    """Without packing and without counted rows nobody knows that a row is as long as max_length lets it be."""
    asked = values("--per_device_train_batch_size", 1_000_000, "--packing", "false", "--dataset_name", "data/nowhere")
    assert plan_start(asked, CPU, "refuse", SFT).fits is False
    assert "does not fit" in capsys.readouterr().err


def test_an_unknown_architecture_has_no_plan_and_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    said = plan_start(values("--model_name_or_path", tmp_path), CPU, "refuse", SFT)
    assert "model_type: 'mamba': no plan for it" in said


def test_a_run_keeps_its_plan_beside_what_it_took_and_the_next_plan_reads_both(early_sft, monkeypatch):
    run = early_sft.parent
    kept, result = record(run)["plan"], record(run)["result"]
    assert kept["processes"][0]["peak"] < 2 * result["peak_memory_bytes"] < 4 * kept["processes"][0]["peak"]
    text = measured.explain(run)
    assert "finished" in text and "memory: planned" in text and "tokens a second" in text
    (earlier,) = [found for found in measured.earlier_runs(run.parent.parent) if found.directory == run]
    monkeypatch.setattr(measured, "OUTPUTS", run.parent)
    topology = Topology(use_cpu=True, attention="varlen_sdpa")
    again = make_plan(values(), topology, Machine(Device("CPU", 20), 1))
    achieved = measured.achieved_before(again, [earlier])
    assert achieved == pytest.approx(result["tokens_per_second"] * kept["alike"]["flops"])
    assert make_plan(values(), topology, again.machine, achieved).hours is not None
    other = replace(again, machine=Machine(Device("other", 20), 1))
    assert measured.achieved_before(other, [earlier]) is None


@pytest.fixture
def ended(early_sft, tmp_path) -> Path:
    """The directory of a run that memory ended."""
    kept = record(early_sft.parent)
    kept.pop("seal", None)
    kept |= {"result": None, "finished": None, "sessions": [{"started": "now", "ended": {"reason": "memory"}}]}
    (tmp_path / "run.json").write_text(json.dumps(kept))
    return tmp_path


def test_a_run_that_memory_ended_is_explained_by_its_parts(ended):
    text = measured.explain(ended)
    assert "ended as memory ran out" in text and "saved activations" in text and "would fit by the plan" in text
    without = json.loads((ended / "run.json").read_text()) | {"plan": None}
    (ended / "run.json").write_text(json.dumps(without))
    with pytest.raises(PosttrainError, match="keeps no plan"):
        measured.explain(ended)


def test_what_took_more_than_planned_is_planned_with_more_the_next_time():
    plan = make_plan(values(), Topology(use_cpu=True), Machine(Device("CPU", 20), 1))
    took = 2 * plan.processes[0].peak
    earlier = measured.Earlier(Path("outputs/x"), plan.as_record(), {"peak_memory_bytes": took})
    again = measured.with_memory_of(plan, [earlier])
    assert again.processes[0].peak == took and "outputs/x with these settings: planned" in again.notes[-1]
    assert again.processes[0].needs > plan.processes[0].needs
