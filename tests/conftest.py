"""Fixtures: where the shared data lies, a tiny random model, and scripts run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ScriptRunner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout, or named by POSTTRAIN_DATA."""
    path = Path(os.environ.get("POSTTRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set POSTTRAIN_DATA")
    return path


def script_environment(config: str | Path | None = "accelerate_configs/cpu.yaml") -> dict[str, str]:
    """One thread, since these models are slower with more; no network; the accelerate config named directly."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("POSTTRAIN_ACCELERATE_CONFIG", None)
    if config:
        environment["POSTTRAIN_ACCELERATE_CONFIG"] = str(config)
    return environment


def run_script(*arguments: object, config: str | Path | None = "accelerate_configs/cpu.yaml", timeout: float = 600):
    """A script of the repository in a process of its own, from the repository's root."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=script_environment(config),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def launch(config: str | Path, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """A script under `accelerate launch --config_file`, the way the README says."""
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *map(str, arguments)],
        cwd=REPOSITORY,
        env=script_environment(config=None),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/tiny_math as its script writes it."""
    directory = tmp_path_factory.mktemp("data")
    done = run_script("data_prep/tiny_math.py", "--out", directory, "--train", 400, "--test", 20)
    assert done.returncode == 0, done.stderr
    return directory
