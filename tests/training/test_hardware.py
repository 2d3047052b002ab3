"""The toggles of an accelerate config: found, checked, and never silently ignored."""

import os
import re

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain import hardware as hardware_module
from posttrain.hardware import (
    ATTENTION,
    FLASH,
    HardwareError,
    Launch,
    busy_cores,
    crowding,
    find_config,
    machine_facts,
    parse_config,
    read_hardware,
    slow_bf16,
    usable_cores,
    what_attention_lacks,
)
from posttrain.launching import LaunchError, forgotten_afterwards


@pytest.fixture(autouse=True)
def nothing_stays_in_force():
    with forgotten_afterwards():
        yield


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dynamo_config: {gradient_checkpointing: 'yes'}", "expected true or false"),
        ("dynamo_config: {attn_implementation: flash}", "expected one of sdpa, eager"),
        ("dynamo_config: {attn_implementation: somebody/kernel}", "expected one of sdpa.*kernels-community/…"),
        ("dynamo_config: {attn_implementation: kernels-community/../x}", "expected one of sdpa"),
        ("dynamo_config: {attn_implementation: [sdpa]}", "expected one of sdpa"),
        ("distributed_type: MULTI_CPU", "starts a single process"),
        ("distributed_type: FSDP\nuse_cpu: true", "shards nothing on CPUs then"),
        (
            "dynamo_config: {gradient_checkpointing: true}\nfsdp_config: {fsdp_activation_checkpointing: true}",
            "leave one of them out",
        ),
        ("a: [", "not YAML"),
        ("", "expected `key: value` lines"),
        ("dynamo_config: {attn_implementaton: sdpa}", "attn_implementaton: unknown key"),
    ],
)
def test_a_wrong_config_is_refused(text, expected):
    with pytest.raises(HardwareError, match=expected):
        parse_config("x.yaml", text)


def test_the_variable_names_the_config(monkeypatch, tmp_path):
    path = tmp_path / "mine.yaml"
    toggles = "dynamo_config: {gradient_checkpointing: true, attn_implementation: eager}"
    path.write_text(f"distributed_type: 'NO'\nuse_cpu: true\n{toggles}\n")
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(path))
    hardware = read_hardware()
    assert (hardware.gradient_checkpointing, hardware.attn_implementation, hardware.use_cpu) == (True, "eager", True)
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(HardwareError, match="no such file"):
        find_config()


def test_without_a_launcher_there_is_no_config(monkeypatch):
    monkeypatch.delenv("POSTTRAIN_ACCELERATE_CONFIG", raising=False)
    assert find_config() is None
    assert read_hardware().attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "name", [*ATTENTION, "kernels-community/flash-attn3", "kernels-community/vllm-flash-attn3@v1:f"]
)
def test_an_attention_of_transformers_is_accepted_and_tells_what_it_lacks(name):
    assert parse_config("x.yaml", f"dynamo_config: {{attn_implementation: '{name}'}}")
    if name not in FLASH and "/" not in name:
        return
    assert "needs a CUDA GPU" in what_attention_lacks(name, cuda=False, precision="bf16")
    lack = what_attention_lacks(name, cuda=True, precision="bf16")
    assert lack is None or re.search("needs the package (flash-attn|kernels)", lack)
    assert what_attention_lacks("kernels-community/x", cuda=True, precision="no")


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3"])
def test_flash_attention_is_never_replaced(monkeypatch, tmp_path, name):
    path = tmp_path / "gpu.yaml"
    path.write_text(f"distributed_type: 'NO'\ndynamo_config: {{attn_implementation: {name}}}\n")
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(path))
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(HardwareError, match=r"gpu.yaml: .*use accelerate_configs/cpu.yaml"):
        read_hardware()


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "busy", "text"),
    [
        (1, 1, 2, 2.0, None),  # one thread shares a core and waits for nobody
        (1, 2, 2, 1.9, None),
        (2, 1, 2, 0.1, None),
        (2, 1, 2, 1.2, "2 threads on 2 cores, of which other work keeps 1.2 busy: .*set OMP_NUM_THREADS=1"),
        (4, 1, 2, 0.0, "4 threads on 2 cores: .*set OMP_NUM_THREADS=2"),
        (64, 1, 2, 0.0, "64 threads on 2 cores: .*set OMP_NUM_THREADS=2"),  # a container's quota
        (2, 2, 2, 0.0, "2 processes of 2 threads on 2 cores: .*set OMP_NUM_THREADS=1"),
        (1, 8, 2, 0.0, "8 processes of 1 thread on 2 cores: .*start fewer processes"),
        (64, 1, 64, 1.5, None),  # what a large machine always does beside
        (64, 1, 64, 30.2, "64 threads on 64 cores, of which other work keeps 30.2 busy: .*set OMP_NUM_THREADS=34"),
        (1, 1, 1, 5.0, None),
    ],
)
def test_threads_that_find_no_core_are_told_of(threads, processes, cores, busy, text):
    found = crowding(threads, processes, cores, busy)
    assert (found is None) == (text is None)
    assert text is None or re.fullmatch(text, found)


@given(st.integers(1, 256), st.integers(1, 64), st.integers(1, 256), st.floats(0, 300))
def test_the_advice_on_threads_is_one_that_gives_no_warning(threads, processes, cores, busy):
    found = crowding(threads, processes, cores, busy)
    if found and (advised := re.search(r"OMP_NUM_THREADS=(\d+)", found)):
        assert crowding(int(advised[1]), processes, cores, busy) is None


def test_the_cores_of_this_machine_can_be_counted():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert 0 <= busy_cores() <= (os.cpu_count() or 1)


def config(tmp_path, monkeypatch, **values):
    """A config named in the environment, and nothing of a launch around it."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "NO", "num_processes": 1, "use_cpu": True, **values}))
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_precision_of_the_file_is_in_force(tmp_path, monkeypatch):
    config(tmp_path, monkeypatch, mixed_precision="bf16")
    assert read_hardware().mixed_precision == os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert read_hardware().mixed_precision == "bf16"  # a second look finds what it put there itself


@pytest.mark.parametrize(
    ("values", "environment", "expected"),
    [
        ({"num_processes": 8}, {}, "num_processes: 8: but 1 of them run"),
        ({"num_processes": 8}, {"WORLD_SIZE": "2", "RANK": "0"}, "num_processes: 8: but 2 of them run"),
        ({"distributed_type": "FSDP", "use_cpu": False}, {}, "distributed_type: FSDP: plain python shards nothing"),
        ({"mixed_precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "no"}, "PRECISION=bf16, the environment has no"),
        ({"mixed_precision": "bf17"}, {}, "accelerate cannot use it: ValueError: Unknown mixed_precision"),
        ({"no_such_key": 1}, {}, "accelerate cannot use it: ValueError: The config file"),
    ],
)
def test_what_cannot_be_in_force_is_refused_with_both_values(values, environment, expected, tmp_path, monkeypatch):
    config(tmp_path, monkeypatch, **values)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=expected):
        read_hardware()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "mixed_precision: bf16, and no is in force"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "distributed_type: DEEPSPEED, and no sharding is in force"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true"},
            "distributed_type: DEEPSPEED, and FSDP is in force",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_DEEPSPEED": "true"}, None),
    ],
)
def test_accelerate_launch_without_the_file_is_held_against_it(environment, expected, tmp_path, monkeypatch):
    config(tmp_path, monkeypatch, mixed_precision="bf16", distributed_type="DEEPSPEED", num_processes=2)
    monkeypatch.setattr(hardware_module, "_launch", lambda: Launch(None))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        assert read_hardware().mixed_precision == "bf16"
    else:
        with pytest.raises(LaunchError, match=expected):
            read_hardware()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_ours_can_be_in_force(path):
    from posttrain.launching import launch_variables

    variables, written = launch_variables(path), yaml.safe_load(path.read_text())
    assert variables["ACCELERATE_MIXED_PRECISION"] == written["mixed_precision"]
    stage = (written.get("deepspeed_config") or {}).get("zero_stage")
    assert variables.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == (str(stage) if stage is not None else None)
    assert variables.get("FSDP_VERSION") == ("2" if "fsdp_config" in written else None)


@pytest.mark.parametrize(
    "text, slow",
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16 avx2\n", False),
        ("flags\t\t: fpu amx_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16_no\n", True),
        ("no processor that we know\n", False),
        (None, False),  # no such file: macOS
    ],
)
def test_bf16_on_a_processor_without_units_for_it_is_told(tmp_path, text, slow):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert ("cpu.yaml" in slow_bf16(tmp_path / "cpuinfo")) == slow


@pytest.mark.parametrize("autocast, warned", [("bf16", True), ("no", False)])
def test_the_header_of_a_bf16_run_says_so(monkeypatch, tmp_path, models, autocast, warned):
    from transformers import AutoModelForCausalLM

    (tmp_path / "cpuinfo").write_text("flags : fpu avx2\n")
    monkeypatch.setattr(hardware_module, "CPU_INFO", tmp_path / "cpuinfo")
    facts = machine_facts(AutoModelForCausalLM.from_pretrained(models / "qwen2"), autocast=autocast)
    assert ("slower than float32" in facts["warning"]) == warned
