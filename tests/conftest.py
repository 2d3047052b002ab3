"""Fixtures: where the shared data lies, a tiny random model, and scripts run as a user runs them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml
from filelock import FileLock
from forked import Process, capturing, start_python
from hypothesis import settings

from posttrain.jsonl import SEAL

REPOSITORY = Path(__file__).parents[1]
# A shell that starts the tests in the background makes them, and all that they start, deaf to Ctrl-C; nohup to SIGHUP.
for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signum) == signal.SIG_IGN:
        signal.signal(signum, handler)
STARTED_WITH = dict(os.environ)  # scripts get this: what a library sets in the tests' process is not theirs
# To see that no test rests on luck: other threads (environments such as ATEN_CPU_CAPABILITY pass through) and seeds.
THREADS = os.environ.get("POSTTRAIN_TEST_THREADS", "1")
SEED = os.environ.get("POSTTRAIN_TEST_SEED", "0")
# Port 0: the usual one may still be held by a launch that ended a moment ago.
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]

# An example may take any time on a busy machine. `make test` tries the same ones at every run, `make test-all` others.
settings.register_profile("every run", deadline=None, derandomize=True)
settings.register_profile("exhaustive", deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run the proofs of many minutes too: make test-all")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("exhaustive" if config.getoption("--exhaustive") else "every run")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("exhaustive") and not item.config.getoption("--exhaustive"):
        pytest.skip("many minutes: make test-all")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from scheduling import OneByOne

    return OneByOne(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout, or named by POSTTRAIN_DATA."""
    path = Path(os.environ.get("POSTTRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set POSTTRAIN_DATA")
    return path


def script_environment(config: str | Path | None = "accelerate_configs/cpu.yaml") -> dict[str, str]:
    """One thread, since these models are slower with more; no network; the accelerate config named directly."""
    environment = {**STARTED_WITH, "OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("POSTTRAIN_ACCELERATE_CONFIG", None)
    if config:
        environment["POSTTRAIN_ACCELERATE_CONFIG"] = str(config)
    return environment


def run_script(
    *arguments: object,
    config: str | Path | None = "accelerate_configs/cpu.yaml",
    timeout: float = 1800,
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


def launch(config: str | Path, *arguments: object, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
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
    """A run's record without its seal, so that a test may write it back with changes."""
    return {key: value for key, value in json.loads((out / "run.json").read_text()).items() if key != SEAL}


def share_moved(before: Path, after: Path) -> float:
    """The share of all weights, in float32, that training changed.

    Of all and not of each tensor: a norm has 64 weights, and one whose gradient is next to nothing may stay as it was.
    """
    from safetensors.torch import load_file

    old, new = load_file(before), load_file(after)
    assert {str(tensor.dtype) for tensor in new.values()} == {"torch.float32"}
    moved = sum(int((new[name] != old[name]).sum()) for name in old)
    return moved / sum(tensor.numel() for tensor in old.values())


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
    deadline = time.monotonic() + 600
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process)
    assert path.exists(), f"{path} never came"


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: a directory that the first worker in need of it makes, and every worker may read."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def directory(name: str, make: Callable[[Path], object]) -> Path:
        path, whole = shared / f"once_{name}", shared / f"once_{name}.whole"
        with FileLock(shared / f"once_{name}.lock"):
            if not whole.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                whole.touch()
        return path

    return directory


def must(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """A finished command, if it ended well."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def grader() -> Iterator[Any]:
    """One verifier for all tests that only ask it."""
    from posttrain.grading.grader import Grader

    with Grader(workers=2) as grader:
        yield grader


@pytest.fixture(scope="session")
def tiny_data(once: Once) -> Path:
    """data/tiny_math as its script writes it."""
    sizes = ("--train", 400, "--test", 20)
    return once("tiny_data", lambda out: must(run_script("data_prep/tiny_math.py", "--out", out, *sizes)))


@pytest.fixture(scope="session")
def whole_tiny_data(once: Once) -> Path:
    """data/tiny_math and the held-out sets at the demo's sizes, for tests of learning."""
    return once("whole_tiny_data", lambda out: must(run_script("data_prep/tiny_math.py", "--out", out)))


@pytest.fixture(scope="session")
def early_sft(once: Once, whole_tiny_data: Path) -> Path:
    """The undertrained tiny SFT model: it has the format, and gets about half of the questions wrong."""
    data = ("--dataset_name", whole_tiny_data / "tiny_math", "--eval_strategy", "no", "--sample_generations", 0)
    command = ("src/sft.py", "recipes/tiny_sft_early.yaml", *data, "--seed", SEED, "--output_dir")
    return once("early_sft", lambda out: must(run_script(*command, out / "run"))) / "run/final"


@pytest.fixture(scope="session")
def models(once: Once) -> Path:
    """A directory for each architecture of tiny_trainer, with random weights and the tiny tokenizer."""
    return once("models", write_models)


def write_models(directory: Path) -> None:
    import torch
    from tiny_trainer import CONFIGS
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
