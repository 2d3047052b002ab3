"""The toggles of an accelerate config: found, checked, and never silently ignored."""

import pytest

from posttrain.hardware import HardwareError, find_config, parse_config, read_hardware


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dynamo_config: {gradient_checkpointing: 'yes'}", "expected true or false"),
        ("dynamo_config: {attn_implementation: flash}", "expected one of sdpa, eager"),
        ("distributed_type: MULTI_CPU", "starts a single process"),
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
    path.write_text("use_cpu: true\ndynamo_config: {gradient_checkpointing: true, attn_implementation: eager}\n")
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


def test_flash_attention_is_never_replaced(monkeypatch, tmp_path):
    path = tmp_path / "gpu.yaml"
    path.write_text("dynamo_config: {attn_implementation: flash_attention_2}\n")
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(path))
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(HardwareError, match=r"gpu.yaml: .*use accelerate_configs/cpu.yaml"):
        read_hardware()
