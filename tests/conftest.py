"""Fixtures: where the shared data lies, a tiny random model, and scripts run as a user runs them."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml
from forked import Process, capturing, start_python
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]
STARTED_WITH = dict(os.environ)  # scripts get this: what a library sets in the tests' process is not theirs
# Port 0: the usual one may still be held by a launch that ended a moment ago.
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]

settings.register_profile("busy", deadline=None)  # an example may take any time on a busy machine
settings.load_profile("busy")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout, or named by POSTTRAIN_DATA."""
    path = Path(os.environ.get("POSTTRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set POSTTRAIN_DATA")
    return path


def script_environment(config: str | Path | None = "accelerate_configs/cpu.yaml") -> dict[str, str]:
    """One thread, since these models are slower with more; no network; the accelerate config named directly."""
    environment = {**STARTED_WITH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("POSTTRAIN_ACCELERATE_CONFIG", None)
    if config:
        environment["POSTTRAIN_ACCELERATE_CONFIG"] = str(config)
    return environment


def run_script(
    *arguments: object,
    config: str | Path | None = "accelerate_configs/cpu.yaml",
    timeout: float = 600,
    fresh: bool = False,
    text: str = "",
) -> subprocess.CompletedProcess[str]:
    """A script of the repository in a process of its own, from the repository's root; `fresh` by a new interpreter."""
    command = [str(word) for word in arguments]
    with capturing(text) as files:
        streams = [file.fileno() for file in files]
        process = start_python(command, REPOSITORY, script_environment(config), streams, fresh)
        try:
            process.wait(timeout)
        except BaseException:
            kill(process)
            raise
        for file in files:
            file.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, files[1].read(), files[2].read())


def launch(config: str | Path, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """A script under `accelerate launch --config_file`, the way the README says; on a port that is free."""
    return subprocess.run(
        [*LAUNCHER, str(config), *map(str, arguments)],
        cwd=REPOSITORY,
        env=script_environment(config=None),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def config_copy(tmp_path: Path, name: str, toggles: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A copy of an accelerate config with some lines changed."""
    config = yaml.safe_load((REPOSITORY / "accelerate_configs" / f"{name}.yaml").read_text())
    config |= changes
    config["dynamo_config"] |= toggles or {}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(command: Sequence[object], config: str | None, stderr: IO[str] | None = None) -> Process:
    """What Python's command line takes, in the background; nobody reads what it prints, or `stderr` does."""
    with open(os.devnull, "r+b") as nothing:
        streams = [nothing.fileno(), nothing.fileno(), (stderr or nothing).fileno()]
        return start_python([*map(str, command)], REPOSITORY, script_environment(config), streams, fresh=False)


def kill(process: Process) -> None:
    """SIGKILL a process and all its children; workers of torchrun have sessions of their own."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                child.kill()
        process.wait()


def kill_when(path: Path, command: Sequence[object], config: str | None) -> None:
    """Start a command and kill it as soon as `path` exists, which is in the middle of what it writes then."""
    process = start(command, config)
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process)
    assert path.exists(), f"{path} never came"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/tiny_math as its script writes it."""
    directory = tmp_path_factory.mktemp("data")
    done = run_script("data_prep/tiny_math.py", "--out", directory, "--train", 400, "--test", 20)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def whole_tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/tiny_math and the held-out sets at the demo's sizes, for tests of learning."""
    directory = tmp_path_factory.mktemp("whole_data")
    done = run_script("data_prep/tiny_math.py", "--out", directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def early_sft(whole_tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undertrained tiny SFT model: it has the format, and gets about half of the questions wrong."""
    out = tmp_path_factory.mktemp("early") / "run"
    data = whole_tiny_data / "tiny_math"
    done = run_script("src/sft.py", "recipes/tiny_sft_early.yaml", "--dataset_name", data, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    return out / "final"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each architecture of tiny_trainer, with random weights and the tiny tokenizer."""
    import torch
    from tiny_trainer import CONFIGS
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory
