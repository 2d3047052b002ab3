"""A run that starts tells its plan, is refused where it cannot fit, and keeps the plan beside what it took."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY, record
from tiny_trainer import CPU

from posttrain import lineage
from posttrain.errors import PosttrainError
from posttrain.plan import measured
from posttrain.plan.devices import Device, Machine
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.recipe_plan import Plan, alike, make_plan
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
    topology, machine = Topology(use_cpu=True, attention="varlen_sdpa"), Machine(Device("CPU", 20), 1)
    again = measured.plan_with(values(), topology, machine, [earlier])
    settled = earlier.windows()[1:]
    rate = sum(window.tokens for window in settled) / sum(window.seconds for window in settled)
    assert again.pace.achieved == pytest.approx(rate * alike(again)["flops"])
    assert rate == pytest.approx(result["tokens_per_second"], rel=0.5)
    assert again.hours is not None and make_plan(values(), topology, machine).hours is None
    assert measured.plan_with(values(), topology, Machine(Device("other", 20), 1), [earlier]).pace.achieved is None


def earlier_run(out: Path, recipe: dict, plan: Plan, windows: list[dict], **result) -> measured.Earlier:
    """A finished run of a recipe with such lines of metrics.jsonl."""
    out.mkdir()
    (out / "metrics.jsonl").write_text("".join(json.dumps({"loss": 1.0, **line}) + "\n" for line in windows))
    manifest = json.loads((Path(recipe["dataset_name"]) / "manifest.json").read_text())
    return measured.Earlier(out, {
        "plan": plan.as_record(), "sessions": [{"resumed_from": None}],
        "identity": {**recipe, "dataset_files": lineage.digest(manifest["files"])},
        "inputs": {"dataset": {"used": {"train": 100}}},
        "result": {"tokens_seen": windows[-1]["tokens_seen"], "peak_memory_bytes": 1, **result},
    })  # fmt: skip


@pytest.fixture
def uncounted(tmp_path) -> Path:
    """A dataset of 100 rows whose tokens nobody counted."""
    (tmp_path / "data").mkdir()
    manifest = {
        "counts": {"kept": {"train": 100}},
        "tokens": {"step": 64, "histogram": {"train": {}}},
        "files": {"train.parquet": {"rows": 100}},
    }
    (tmp_path / "data/manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "data"


def test_a_run_of_twenty_steps_says_how_long_an_epoch_takes(uncounted, tmp_path):
    recipe = read_recipe([
        SFT, "--dataset_name", str(uncounted), "--packing", "false", "--max_length", "512", "--num_train_epochs", "2",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3",
        "--save_steps", "10",
    ], "sft").values  # fmt: skip
    machine, cpu = Machine(Device("CPU", 20), 1), Topology(use_cpu=True)
    plan = make_plan(recipe, cpu, machine)
    assert plan.steps == 2 * 17 and plan.tokens == 34 * 6 * 512 and plan.hours is None  # 50 micro-batches, three a step
    # Twenty steps of six rows of 40 tokens, ten of them at 50 tokens a second, with what is done once, and ten at 100;
    # two seconds of four stops: an evaluation, two checkpoints, the end.
    windows = [
        {"step": step, "tokens_seen": step * 240, "tokens_per_second": rate} for step, rate in ((10, 50.0), (20, 100.0))
    ]
    run = earlier_run(
        tmp_path / "run",
        recipe,
        plan,
        windows,
        steps=20,
        epochs=1.2,
        tokens_per_second=100.0,
        wall_seconds=48 + 24 + 2,
    )
    again = measured.plan_with(recipe, cpu, machine, [run])
    assert again.tokens == pytest.approx(34 * 6 * 40)
    assert again.seconds == pytest.approx({"training": 34 * 2.4, "evaluation and saving": 6 * 0.5})
    assert not any("at most" in note for note in again.notes)
    other = measured.plan_with(recipe | {"prompt": "another"}, cpu, machine, [run])
    assert other.tokens == plan.tokens  # another prompt has other tokens


def test_grpo_takes_as_long_a_row_as_it_did_by_phase(uncounted, tmp_path):
    recipe = read_recipe(
        ["recipes/tiny_grpo.yaml", "--dataset_name", str(uncounted), "--max_steps", "100"], "grpo"
    ).values
    machine, cpu = Machine(Device("CPU", 20), 1), Topology(use_cpu=True)
    plan = make_plan(recipe, cpu, machine)
    seconds = {"seconds/generation": 3.0, "seconds/sync": 0.5, "seconds/reward": 0.5, "seconds/update": 1.0}
    windows = [{"step": 20, "tokens_seen": 1000, "tokens_per_second": 10.0, **seconds}]
    run = earlier_run(
        tmp_path / "run", recipe, plan, windows, steps=20, epochs=0.1, tokens_per_second=10.0, wall_seconds=120.0
    )
    again = measured.plan_with(recipe, cpu, machine, [run])
    expected = {"generation": 300, "training": 200, "evaluation and saving": 17 * 4}  # 5 stops before
    assert again.seconds == pytest.approx(expected)
    twice = recipe | {"gradient_accumulation_steps": 2 * recipe["gradient_accumulation_steps"]}
    assert measured.plan_with(twice, cpu, machine, [run]).seconds["generation"] == pytest.approx(600)
    longer = recipe | {"max_completion_length": recipe["max_completion_length"] + 1}
    assert not measured.plan_with(longer, cpu, machine, [run]).pace.phases
    (run.directory / "metrics.jsonl").write_text("damaged")
    assert not measured.plan_with(recipe, cpu, machine, [run]).seconds


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
    record = {"plan": plan.as_record(), "result": {"peak_memory_bytes": took}}
    earlier = measured.Earlier(Path("outputs/x"), record)
    again = measured.with_memory_of(plan, [earlier])
    assert again.processes[0].peak == took and "outputs/x with these settings: planned" in again.notes[-1]
    assert again.processes[0].needs > plan.processes[0].needs
