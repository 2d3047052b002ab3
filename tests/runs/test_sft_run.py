"""src/sft.py end to end on CPU: it learns, it records, it resumes exactly, and it refuses what is wrong."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LAUNCHER, REPOSITORY, config_copy, kill, kill_when, launch, must, record, run_script, start
from safetensors.torch import load_file

from posttrain.lineage import read_lineage

pytestmark = pytest.mark.slow
RECIPE = "recipes/tiny_sft.yaml"
TWO = "accelerate_configs/cpu_2proc.yaml"
HALF = {"per_device_train_batch_size": 2}  # on each of two processes
TIMELESS = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "tokens_seen", "mean_token_accuracy", "entropy")


def arguments(data: Path, out: Path, **changes: Any) -> list[str]:
    values = {
        "dataset_name": data / "tiny_math", "output_dir": out, "max_steps": 20, "logging_steps": 2, "save_steps": 10,
        "eval_steps": 10, "sample_generations": 2, **changes,
    }  # fmt: skip
    return ["src/sft.py", RECIPE, *(text for key, value in values.items() for text in (f"--{key}", str(value)))]


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: line.get(key) for key in TIMELESS} for line in lines]


@pytest.fixture(scope="session")
def one_process(once, tiny_data) -> Path:
    """The uninterrupted run on one process that others are compared with."""
    config = "accelerate_configs/cpu.yaml"
    return once("sft", lambda out: must(launch(config, *arguments(tiny_data, out / "run")))) / "run"


def test_it_learns(one_process):
    before = load_file(REPOSITORY / "assets/tiny_base/model.safetensors")
    after = load_file(one_process / "final/model.safetensors")
    assert set(before) == set(after)
    unmoved = [name for name in before if before[name].equal(after[name])]
    assert not unmoved
    losses = [line["loss"] for line in metrics(one_process) if line["loss"]]
    assert losses[-1] < losses[0] / 2


def test_the_record_says_what_the_run_was(one_process):
    run = record(one_process)
    assert run["finished"]
    assert run["result"]["steps"] == 20
    assert run["result"]["exit_reason"] == "completed"
    assert run["recipe"]["text"] == (REPOSITORY / RECIPE).read_text()
    assert run["accelerate"]["path"] == "accelerate_configs/cpu.yaml"
    assert run["result"]["effective"]["weights_dtype"] == "float32"
    assert run["rope"]["base"]["rope_theta"] == 10000.0
    assert run["inputs"]["model"]["parent_run"].startswith("tiny_base-")
    assert (run["prompt"], run["eos_token"]) == ("chat", "<|im_end|>")
    assert read_lineage(one_process / "final") == run
    lines = [json.loads(line) for line in (one_process / "metrics.jsonl").read_text().splitlines()]
    assert all({"tokens_seen", "tokens_per_second", "grad_norm"} <= set(line) for line in lines if "loss" in line)
    assert all(line["tokens_per_second"] > 0 for line in lines if "loss" in line)  # those with an evaluation too
    assert len((one_process / "generations.jsonl").read_text().splitlines()) == 2 * 2


def test_the_final_checkpoint_loads_in_plain_transformers(one_process):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(one_process / "final")
    tokenizer = AutoTokenizer.from_pretrained(one_process / "final")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template
    config = json.loads((one_process / "final/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # for readers before transformers 5
    assert not list((one_process / "final").glob("*.bin"))


def test_the_same_command_again_does_nothing_and_another_is_refused(one_process, tiny_data):
    again = run_script(*arguments(tiny_data, one_process))
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    other = run_script(*arguments(tiny_data, one_process, seed=1))
    assert other.returncode == 2
    assert "belongs to another run" in other.stderr
    assert "seed: 0 there, 1 here" in other.stderr


@pytest.fixture(scope="session")
def two_processes(once, tiny_data) -> Path:
    """The same run on two processes."""
    return once("sft_two", lambda out: must(launch(TWO, *arguments(tiny_data, out / "run", **HALF)))) / "run"


def test_two_processes_have_the_losses_of_one(one_process, two_processes):
    assert record(two_processes)["accelerate"]["num_processes"] == 2
    for one, two in zip(metrics(one_process), metrics(two_processes), strict=True):
        if one["loss"]:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert two["tokens_seen"] == one["tokens_seen"]


def test_fsdp_where_accelerate_would_shard_nothing_is_refused(tiny_data, tmp_path):
    """Without GPUs accelerate takes DDP for FSDP: a run that promised sharding would hold every model whole."""
    toggles = {"gradient_checkpointing": False, "attn_implementation": "varlen_sdpa"}
    config = config_copy(tmp_path, "fsdp2", toggles, num_processes=2, use_cpu=False, mixed_precision="no")
    done = launch(config, *arguments(tiny_data, tmp_path / "run"))
    assert done.returncode != 0
    assert "asks for distributed_type: FSDP, and accelerate runs" in done.stderr
    assert not (tmp_path / "run/final").exists()


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_sharded_training_has_the_losses_of_one_process(one_process, tiny_data, tmp_path, name):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("DeepSpeed compiles its CPU communication, and there is no C++ compiler")
    toggles = {"gradient_checkpointing": False, "attn_implementation": "varlen_sdpa"}
    config = config_copy(tmp_path, name, toggles, num_processes=2, use_cpu=True, mixed_precision="no")
    done = launch(config, *arguments(tiny_data, tmp_path / "run", per_device_train_batch_size=2))
    assert done.returncode == 0, done.stderr[-3000:]
    for one, sharded in zip(metrics(one_process), metrics(tmp_path / "run"), strict=True):
        if one["loss"]:
            assert sharded["loss"] == pytest.approx(one["loss"], rel=1e-3)
    whole, gathered = (load_file(path / "final/model.safetensors") for path in (one_process, tmp_path / "run"))
    assert all(gathered[name].float().sub(whole[name]).abs().max() < 1e-2 for name in whole)


def test_toggles_of_the_accelerate_config_reach_the_model(tiny_data, tmp_path):
    toggles = {"gradient_checkpointing": True, "attn_implementation": "eager"}
    config = config_copy(tmp_path, "cpu", toggles, mixed_precision="bf16")
    done = launch(config, *arguments(tiny_data, tmp_path / "run", max_steps=2, packing="false"))
    assert done.returncode == 0, done.stderr
    effective = record(tmp_path / "run")["result"]["effective"]
    assert effective["gradient_checkpointing"] is True
    assert effective["attn_implementation"] == "eager"
    assert (effective["weights_dtype"], effective["autocast"]) == ("float32", "bf16")
    weights = load_file(tmp_path / "run/final/model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}  # master weights, not their cast


def killed_at(line: int, delay: float, command: list[str], out: Path) -> bool:
    """Start a run and kill it `delay` seconds after it has logged `line` lines; whether it was still running."""
    process, log = start(command, "accelerate_configs/cpu.yaml"), out / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= line):
        time.sleep(0.001)
    time.sleep(delay)
    running = process.poll() is None
    kill(process)
    return running


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_run_killed_again_and_again_ends_bit_identical(tiny_data, tmp_path, kills):
    """Of four lines that it logs a kill follows one, at a random moment of the steps to the next."""
    steps = {"max_steps": 20 * kills, "save_steps": 10, "logging_steps": 5, "eval_steps": 40}
    must(run_script(*arguments(tiny_data, tmp_path / "whole", **steps)))
    command, rng = arguments(tiny_data, tmp_path / "killed", **steps), random.Random(0)
    step = record(tmp_path / "whole")["result"]["wall_seconds"] / steps["max_steps"]
    for number in range(kills):
        assert killed_at(3 * number + 1, rng.uniform(0, 5 * step), command, tmp_path / "killed"), number
    must(run_script(*command))
    assert_identical(tmp_path / "whole", tmp_path / "killed")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tiny_data, tmp_path):
    steps = {"max_steps": 30, "save_steps": 10, "logging_steps": 4}  # saves fall between two logs
    config = "accelerate_configs/cpu.yaml"
    assert run_script(*arguments(tiny_data, tmp_path / "whole", **steps), config=config).returncode == 0
    out = tmp_path / "killed"
    command = arguments(tiny_data, out, **steps)
    kill_when(out / "checkpoint-20", command, config)
    (out / "checkpoint-20/complete.json").unlink(missing_ok=True)  # where the machine was faster than the kill
    done = run_script(*command, config=config)
    assert done.returncode == 0, done.stderr
    assert record(out)["sessions"][-1]["resumed_from"] == "checkpoint-10"
    assert "checkpoint-20: not complete" in done.stderr
    assert_identical(tmp_path / "whole", out)


def test_two_processes_resume_exactly(two_processes, tiny_data, tmp_path):
    out = tmp_path / "killed"
    command = arguments(tiny_data, out, **HALF)
    kill_when(out / "checkpoint-10/complete.json", [*LAUNCHER[1:], TWO, *command], config=None)
    must(launch(TWO, *command))
    assert record(out)["sessions"][-1]["resumed_from"]
    assert_identical(two_processes, out)


def assert_identical(whole: Path, resumed: Path) -> None:
    assert (whole / "final/model.safetensors").read_bytes() == (resumed / "final/model.safetensors").read_bytes()
    assert metrics(whole) == metrics(resumed)
    assert (whole / "generations.jsonl").read_bytes() == (resumed / "generations.jsonl").read_bytes()


def test_a_run_stopped_after_its_last_step_takes_no_other(tiny_data, tmp_path):
    """Under a constant schedule one step more would show in the weights."""
    steps = {"max_steps": 8, "save_steps": 8, "lr_scheduler_type": "constant", "eval_steps": 8}
    command = arguments(tiny_data, tmp_path / "run", **steps)
    assert run_script(*command).returncode == 0
    weights = (tmp_path / "run/final/model.safetensors").read_bytes()
    before, files = record(tmp_path / "run"), {p.name for p in (tmp_path / "run/final").iterdir()}
    shutil.rmtree(tmp_path / "run/final")
    (tmp_path / "run/run.json").write_text(json.dumps({**before, "finished": None, "result": None}))
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/final/model.safetensors").read_bytes() == weights
    assert {p.name for p in (tmp_path / "run/final").iterdir()} == files
    after = record(tmp_path / "run")["result"]
    assert (after["steps"], after["tokens_seen"]) == (8, before["result"]["tokens_seen"])


def test_two_runs_cannot_write_to_one_directory(tiny_data, tmp_path):
    command = arguments(tiny_data, tmp_path / "run", max_steps=400, eval_steps=400)
    first = start(command, "accelerate_configs/cpu.yaml")
    try:
        while not (tmp_path / "run/run.json").exists() and first.poll() is None:
            time.sleep(0.05)
        second = run_script(*command)
    finally:
        kill(first)
    assert second.returncode == 2
    assert "another process is still writing there" in second.stderr


def test_lora_trains_the_adapter_alone_and_evaluates(tiny_data, tmp_path):
    out = tmp_path / "run"
    done = run_script(*arguments(tiny_data, out, use_peft="true", lora_r=4, lora_target_modules="[q_proj, v_proj]"))
    assert done.returncode == 0, done.stderr
    effective = record(out)["result"]["effective"]
    assert 0 < effective["trainable_parameters"] < effective["parameters"] / 20
    adapter = load_file(out / "final/adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    again = run_script(*arguments(tiny_data, tmp_path / "o", model_name_or_path=out / "final"))
    assert again.returncode == 2
    assert "is an adapter, training starts from whole weights" in again.stderr
    evaluated = run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", out / "final", "--data_dir", tiny_data,
        "--benchmarks", "tiny_1step", "--output_dir", tmp_path / "evals",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_full_disk_leaves_the_last_whole_checkpoint(tiny_data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        done = run_script(*arguments(tiny_data, disk / "run", save_total_limit=2))
        assert done.returncode == 2, done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "checkpoint-20 could not be written" in error
        assert "last whole checkpoint is checkpoint-10" in error
        assert (disk / "run/checkpoint-10/complete.json").is_file()
        assert not (disk / "run/checkpoint-20/complete.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def broken_model(tmp_path: Path) -> Path:
    directory = tmp_path / "weightless"
    shutil.copytree(REPOSITORY / "assets/tiny_init", directory)
    return directory


def test_each_wrong_input_has_one_line_and_an_exit_code(tiny_data, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(tiny_data / "tiny_math", changed)
    (changed / "train.parquet").write_bytes(b"PAR1")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "file").write_text("")
    flash = config_copy(tmp_path, "cpu", {"attn_implementation": "flash_attention_2"})
    cases = [
        (arguments(tiny_data, tmp_path / "o", learning_rat=1), "cpu", "did you mean learning_rate?"),
        (arguments(tiny_data, tmp_path / "o", seed="x"), "cpu", "seed: 'x': expected int"),
        (arguments(tiny_data, tmp_path / "o", too_long="cut"), "cpu", "expected one of error, drop"),
        (["src/sft.py", "recipes/none.yaml"], "cpu", "recipes/none.yaml: No such file"),
        (["src/sft.py", "recipes/tiny_eval.yaml"], "cpu", "run python src/eval.py recipes/tiny_eval.yaml"),
        (arguments(tiny_data, tmp_path / "o", dataset_name=bare), "cpu", "manifest.json: missing"),
        (arguments(tiny_data, tmp_path / "o", dataset_name=changed), "cpu", "changed after it was prepared"),
        (arguments(tiny_data, tmp_path / "o", model_name_or_path=broken_model(tmp_path)), "cpu", "has no weights"),
        (arguments(tiny_data, tmp_path / "o", max_length=16), "cpu", "tokens, but max_length is 16"),
        (arguments(tiny_data, tmp_path / "o", eos_token="<end>"), "cpu", "eos_token: '<end>': not in the vocabulary"),
        (arguments(tiny_data, tmp_path / "o", prompt="none", append_eos="false"), "cpu", "has no column 'text'"),
        (arguments(tiny_data, bare / "file/o"), "cpu", "not a directory that can be written to"),
        (arguments(tiny_data, tmp_path / "o", freeze_layers=9), "cpu", "freeze_layers: no parameter matches"),
        (arguments(tiny_data, tmp_path / "o", callbacks="[nosuch:Class]"), "cpu", "callbacks: 'nosuch:Class'"),
        (arguments(tiny_data, tmp_path / "o", report_to="nosuch"), "cpu", "nosuch is not supported"),
        (arguments(tiny_data, tmp_path / "o"), flash, "use accelerate_configs/cpu.yaml"),
    ]
    for command, config, expected in cases:
        config = "accelerate_configs/cpu.yaml" if config == "cpu" else config
        done = run_script(*command, config=config)
        assert done.returncode == 2, (expected, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and expected in errors[0], done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "o").exists()
