"""The server's command from the recipe alone, and every way in which a running server can differ from it."""

import json
import socket

import pytest
from conftest import REPOSITORY

from posttrain.generation.vllm import canary
from posttrain.generation.vllm.cpu_settings import CpuSettings
from posttrain.generation.vllm.server import (
    ServerError,
    base_url,
    check_port_is_free,
    config_faults,
    hf_overrides,
    serve_command,
    version_faults,
    wait_for_server,
    who_can_reach,
)

RECIPE = {"model_name_or_path": "outputs/x/final", "vllm_server_port": 8123}
SERVED = {"model": "outputs/x/final", "max_model_len": 1024, "logprobs_mode": "processed_logprobs", "hf_overrides": {}}


def test_the_command_follows_the_recipe():
    gpu, environment = serve_command({**RECIPE, "model_revision": "abc", "vllm_max_model_length": 4096}, None)
    text = " ".join(gpu)
    assert "--model outputs/x/final --host 127.0.0.1 --port 8123 --dtype bfloat16" in text
    assert '--weight-transfer-config {"backend": "nccl"}' in text
    assert "--revision abc" in text and "--max-model-len 4096" in text and "--enforce-eager" not in text
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    settings = CpuSettings("float32", threads=2, cache_bytes=2**20, tokens=512, context=256)
    cpu, environment = serve_command({**RECIPE, "vllm_max_model_length": 4096}, settings)
    assert '--dtype float32 --weight-transfer-config {"backend": "gloo"}' in " ".join(cpu)
    assert "--max-model-len 256" in " ".join(cpu) and "4096" not in cpu
    assert environment["OMP_NUM_THREADS"] == "2" and environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert base_url(RECIPE) == "http://127.0.0.1:8123"
    assert base_url({"vllm_server_base_url": "http://node1:9000/"}) == "http://node1:9000"


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("0.29.0", True),
        ("0.30.0+cpu", True),
        ("0.31.0", True),
        ("0.28.9", False),
        ("0.32.0", False),
        ("0.8.5.post1", False),
    ],
)
def test_versions_of_the_server(version, fits):
    assert (version_faults(version) == []) is fits


@pytest.mark.parametrize(
    ("model", "transfer", "expected"),
    [
        ({}, {"backend": "nccl"}, None),
        ({"model": "Qwen/Qwen2"}, {"backend": "nccl"}, "serves Qwen/Qwen2, the recipe trains outputs/x/final"),
        ({"max_model_len": 512}, {"backend": "nccl"}, "takes 512 tokens, prompt and completion may have 700"),
        ({"logprobs_mode": "raw_logprobs"}, {"backend": "nccl"}, "expected processed_logprobs"),
        ({"hf_overrides": {"rope_theta": 1}}, {"backend": "nccl"}, "changes the model's configuration"),
        ({}, None, "no --weight-transfer-config"),
    ],
)
def test_each_difference_is_named(model, transfer, expected):
    faults = config_faults(SERVED | model, transfer, RECIPE, context=700)
    assert (faults == []) if expected is None else (len(faults) == 1 and expected in faults[0])


def test_a_changed_rope_goes_to_the_server_as_a_whole_dictionary():
    changed = {**RECIPE, "rope_theta": 160000, "max_position_embeddings": 32768}
    asked = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 160000.0},
        "max_position_embeddings": 32768,
    }
    assert hf_overrides(changed) == asked and hf_overrides(RECIPE) == {}
    command, _ = serve_command(changed, None)
    assert json.loads(command[command.index("--hf-overrides") + 1]) == asked
    assert config_faults({**SERVED, "hf_overrides": asked}, {"backend": "nccl"}, changed, context=700) == []
    (fault,) = config_faults(SERVED, {"backend": "nccl"}, changed, context=700)
    assert "the recipe asks for {'rope_parameters'" in fault


def test_a_server_that_never_comes_is_waited_for_and_named(capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ServerError, match=r"no vLLM server after 1 s; start it: make serve RECIPE=r\.yaml"):
        wait_for_server(url, 1, "make serve RECIPE=r.yaml")
    assert "waiting for the vLLM server" in capsys.readouterr().out


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServerError, match="choose another --vllm_server_port"):
            check_port_is_free({"vllm_server_port": other.getsockname()[1]})


def test_the_canary_takes_nothing_but_equal_weights():
    assert canary.difference([[-1.0, -2.0]], [[-1.5, -2.0]]) == (0.25, 0.5)
    canary.check(0.05, 0.1, "weights")
    for mean in (0.11, float("nan"), float("inf")):
        with pytest.raises(canary.StaleWeightsError, match="canary: weights"):
            canary.check(mean, 0.1, "weights")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.53"])
def test_a_server_of_this_machine_alone_needs_no_flag(host):
    assert "only this machine" in who_can_reach({"vllm_server_host": host}, allowed=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "no-such-host.invalid"])
def test_a_server_for_other_machines_needs_a_flag(host):
    with pytest.raises(ServerError, match="--allow_other_machines"):
        who_can_reach({"vllm_server_host": host, "vllm_server_port": 8123}, allowed=False)


def test_the_server_of_the_slurm_script_says_whom_it_answers():
    script = (REPOSITORY / "slurm" / "grpo.sbatch").read_text()
    assert 'src/serve.py "$RECIPE" --vllm_server_host "$SERVER" --allow_other_machines' in script
