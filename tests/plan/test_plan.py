"""Plans of recipes and studies: shapes, devices, processes, time and money, and what is wrong in one line."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, run_script
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import PosttrainError
from posttrain.hardware import parse_config
from posttrain.pipelines import planning
from posttrain.plan.devices import DeviceError, find_machine, named_like, read_devices
from posttrain.plan.hours import TRAINING_SHARE, Data, Pace, training_flops, work_of
from posttrain.plan.memory.process import GIB
from posttrain.plan.memory.training_sizes import Topology, training_sizes
from posttrain.plan.page import page, verdict
from posttrain.plan.recipe_plan import make_plan
from posttrain.plan.shapes import ShapeError, read_shape, shape_of, shipped
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import read_recipe

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
H100 = find_machine("8xH100")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def values(name, *overrides):
    path = f"recipes/{name}.yaml"
    trainer = yaml.safe_load(Path(path).read_text())["trainer"]
    return read_recipe([path, *map(str, overrides)], trainer).values


def topology(name):
    path = REPOSITORY / f"accelerate_configs/{name}.yaml"
    return Topology.of_config(parse_config(str(path), path.read_text()))


@pytest.mark.parametrize(
    "name, count",
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768), ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen3-0.6B", 596_049_920), ("Qwen/Qwen3-8B", 8_190_735_360), ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400), ("meta-llama/Llama-3.1-8B", 8_030_261_248),
    ],
)  # fmt: skip
def test_a_shape_has_the_parameters_of_its_model(name, count):
    assert shipped()[name].parameters == count


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-4B", "meta-llama/Llama-3.2-3B"])
def test_a_model_built_without_memory_has_the_parameters_of_its_shape(name):
    shape = shipped()[name]
    config = AutoConfig.for_model(
        shape.kind, num_hidden_layers=shape.layers, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, head_dim=shape.head,
        vocab_size=shape.vocabulary, max_position_embeddings=shape.positions, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert shape_of(config.to_dict(), "test") == shape


def test_a_directory_that_a_run_will_write_has_the_shape_of_its_start():
    assert read_shape("outputs/qwen2.5_1.5b_gsm8k_sft/final") == shipped()["Qwen/Qwen2.5-1.5B"]
    assert read_shape("Qwen/Qwen2.5-Math-7B-Instruct") == shipped()["Qwen/Qwen2.5-Math-7B"]
    assert read_shape("assets/tiny_base").parameters == 854_144


@pytest.mark.parametrize(
    "config, said",
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2': no plan for it"),
        ({}, "model_type: None"),
        ({"model_type": "qwen2", "hidden_size": 8}, "not the config of a qwen2 model"),
        ({"model_type": "llama", "hidden_size": "x", "num_attention_heads": 0}, "not the config of a llama model"),
    ],
)
def test_a_config_that_is_none_is_told_in_one_line(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShapeError) as raised:
        read_shape(str(tmp_path))
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("outputs/of_nobody/final", "has no config.json, and no recipe of recipes/ writes there"),
        ("no/such/thing", "not a name on the hub"),
        ("nobody-here/nothing-there", "cannot be had from the hub"),
    ],
)
def test_a_model_that_cannot_be_found_is_told_in_one_line(monkeypatch, name, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ShapeError, match=said) as raised:
        read_shape(name)
    assert "\n" not in str(raised.value)


def test_devices_by_name_with_a_users_own_file_before_the_table(tmp_path):
    assert (H100.device.name, H100.count, find_machine("h200").count) == ("H100", 8, 1)
    own = tmp_path / "mine.yaml"
    own.write_text("date: 2026-01-01\ndevices: {H100: {memory: 70, dollars: 9}, Mine: {memory: 12}}")
    assert find_machine("2 x mine", own).device.memory == 12
    assert (find_machine("H100", own).device.dollars, find_machine("H100", own).date) == (9, "2026-01-01")
    assert find_machine("A100", own).device == read_devices()[0]["A100"]
    assert named_like("NVIDIA A100-SXM4-40GB", 42_298_834_944).name == "A100-40"
    assert named_like("NVIDIA H100 80GB HBM3", 85_024_112_640).tflops == 989
    assert named_like("A Thing", 8 * GIB).tflops is None


@pytest.mark.parametrize("text", ["8xH1000", "0xH100", "", "many", "8xx"])
def test_an_unknown_device_is_told_in_one_line(text):
    with pytest.raises(DeviceError, match=r"no such device.*known: ") as raised:
        find_machine(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "devices: {a: {memory: x}}", "date: 1\ndevices: {a: {speed: 1}}",
        "date: 1\ndevices: {a: {memory: 0}}",
    ],
)  # fmt: skip
def test_a_table_of_devices_that_is_none_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "d.yaml"
    path.write_text(content)
    with pytest.raises(DeviceError, match=str(path)) as raised:
        read_devices(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan(path):
    config = topology("zero2" if "qwen" in path.stem or "eval" in path.stem else "cpu")
    keys = values(path.stem)
    made = {"outputs/gsm8k_sft_128/final": "Qwen/Qwen2.5-1.5B", "data/tiny_facts/base": "assets/tiny_base"}
    if keys.get("model_name_or_path") in made:  # by a command of the header
        keys["model_name_or_path"] = made[keys["model_name_or_path"]]
    for machine in (H100, None):
        plan = make_plan(keys, config, machine)
        assert plan.processes and all(process.needs >= process.peak > 0 for process in plan.processes)
        assert plan.fits is (None if machine is None else True), verdict(plan)
        assert json.loads(json.dumps(plan.as_record()))["trainer"] == keys["trainer"]
        assert "\n" not in verdict(plan) and "must be free" in page(plan, "plan", explain=True)


def test_every_trainer_has_a_plan():
    assert {yaml.safe_load(path.read_text())["trainer"] for path in RECIPES} == set(METHODS)


def test_a_run_that_is_too_large_is_told_what_would_fit():
    machine = find_machine("RTX4090")
    plan = make_plan(values("qwen2.5_1.5b_gsm8k_sft"), topology("single_gpu"), machine)
    assert plan.fits is False and verdict(plan).startswith("does not fit: needs 25.8 GiB of 22.6 GiB on RTX4090")
    assert "use_peft: true" in page(plan, "plan")
    wide = make_plan(
        values("qwen2.5_1.5b_gsm8k_lora", "--per_device_train_batch_size", 512), topology("single_gpu"), machine
    )
    assert wide.fits is False and f"a micro-batch of {wide.processes[0].largest} rows would" in verdict(wide)


def test_a_server_and_a_colocated_one_hold_keys_and_values():
    keys = values("qwen_math_grpo")
    server = make_plan(keys, topology("zero2"), find_machine("9xH100"))
    assert [(process.name, process.count) for process in server.processes] == [("trainer", 8), ("vLLM server", 1)]
    parts = server.processes[1].parts
    assert sum(parts.values()) == pytest.approx(0.9 * H100.device.usable)
    assert not server.notes or "GPUs are needed" not in server.notes[0]
    few = make_plan(keys, topology("zero2"), H100)
    assert any("9 GPUs are needed (8 to train), the machine has 8" in note for note in few.notes)
    inside = make_plan(keys | {"vllm_mode": "colocate"}, topology("zero2"), H100)
    (trainer,) = inside.processes
    assert trainer.parts["vLLM beside it"] == pytest.approx(0.3 * H100.device.usable)
    none = make_plan(keys | {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.02}, topology("zero2"), H100)
    assert none.seconds.get("generation") is None


def test_frozen_models_and_pairs_count():
    keys = values("qwen2.5_1.5b_gsm8k_dpo")
    alone = make_plan(keys, topology("single_gpu"), H100).sizes
    beside = make_plan(keys | {"precompute_ref_log_probs": False}, topology("single_gpu"), H100).sizes
    assert alone.batch.rows == 16 and beside.total - alone.total == 4 * 1_543_714_304
    teacher = make_plan(values("qwen2.5_1.5b_gsm8k_distill"), topology("single_gpu"), H100).sizes
    assert teacher.frozen_copies == 4 * 7_615_616_512
    adapter = make_plan(values("qwen2.5_1.5b_gsm8k_lora"), topology("single_gpu"), H100).sizes
    assert adapter.trainable == 18_464_768  # what peft counts for rank 16 on all linear layers
    frozen = make_plan(keys | {"freeze_layers": 28, "freeze_embeddings": True}, topology("single_gpu"), H100).sizes
    assert frozen.trainable == 1536


def test_tokens_and_time_follow_from_rows_and_from_what_was_measured():
    keys = values("qwen_math_sft")
    sizes = training_sizes(keys, topology("zero2"), shipped()["Qwen/Qwen2.5-Math-1.5B"])
    work = work_of(keys, sizes, Data(12_000, 12_000 * 1400.0))
    assert work.steps == math.ceil(12_000 * 1400 / (0.98 * 4096) / 16) and not work.at_most
    flops = training_flops(sizes.shape, replace(sizes, checkpointing=False), 1400)
    assert flops == pytest.approx(9.62e9, rel=0.01)  # of the literature's count for packed documents of that mean
    plan = make_plan(keys | {"max_steps": 100}, topology("zero2"), H100)
    slow = make_plan(keys | {"max_steps": 100}, topology("zero2"), H100, Pace(achieved=1e14))
    assert slow.hours / plan.hours == pytest.approx(TRAINING_SHARE * 989 / 100)
    assert plan.dollars == pytest.approx(plan.hours * 8 * H100.device.dollars)


def test_the_command_says_it_all():
    done = run_script("src/plan.py", "recipes/qwen_math_sft.yaml", "accelerate_configs/zero2.yaml", "--gpus", "8xH100")
    assert done.returncode == 0 and "trainer × 8" in done.stdout and "must be free" in done.stdout
    failed = run_script("src/plan.py", "studies")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1) and "studies: has no run.json" in failed.stderr


@pytest.mark.parametrize(
    "what, config, gpus, overrides, said",
    [
        ("recipes/tiny_sft.yaml", "cpu", "H100", [], "says use_cpu: true"),
        ("recipes/tiny_sft.yaml", "none", None, [], "none.yaml: No such file"),
        ("recipes/none.yaml", "cpu", None, [], "recipes/none.yaml: not a recipe or a study"),
        ("pyproject.toml", "cpu", None, [], "pyproject.toml: "),
        ("accelerate_configs/cpu.yaml", "cpu", None, [], "expected a recipe, which names a trainer, or a study"),
        ("recipes/tiny_sft.yaml", "ddp", "8xH1", [], "8xH1: no such device"),
        ("recipes/tiny_sft.yaml", "cpu", None, ["--learning_rat", "1"], "unknown key; did you mean learning_rate?"),
        ("recipes/tiny_sft.yaml", "cpu", None, ["--model_name_or_path", "data/x"], "data/x: has no config.json"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(what, config, gpus, overrides, said):
    path = Path(f"accelerate_configs/{config}.yaml")
    with pytest.raises(PosttrainError) as raised:
        planning.plans_of(Path(what), path, planning.machine_of(path, gpus, None), overrides)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_plan_of_a_study_sums_its_cells():
    path, config = Path("studies/gsm8k_lr.yaml"), Path("accelerate_configs/single_gpu.yaml")
    plans = planning.plans_of(path, config, find_machine("H200"), ["--max_steps", "10"])
    assert "10 cells: the largest needs 31.5 GiB" in planning.study_text(plans).splitlines()[-1]
    assert json.loads(json.dumps([plan.as_record() for plan in plans.values()]))[0]["steps"] == 10
