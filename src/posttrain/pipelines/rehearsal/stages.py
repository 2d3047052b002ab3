"""The commands of a rehearsal: a recipe's own script, started as a person starts it, killed, and started again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from posttrain import lineage, processes
from posttrain.console import command_line
from posttrain.errors import PosttrainError
from posttrain.generation.vllm.server import answers
from posttrain.hardware import VARIABLE
from posttrain.models import checkpoints
from posttrain.pipelines.rehearsal import forked
from posttrain.pipelines.study.trial import end
from posttrain.recipe.reader import override_arguments

SCRIPTS = Path(__file__).parents[3]
LOOK_SECONDS = 0.002  # between two looks for a checkpoint
LONGEST_SECONDS = 1200.0  # of one command
LAST_LINES = 3  # of a traceback, in an error


class StageError(PosttrainError):
    """A command of the rehearsal that failed, with what it said."""


@dataclass(frozen=True)
class Stages:
    """Commands on a recipe under `overrides` with the accelerate config `config`, all of which write below `out`."""

    recipe: Path
    trainer: str
    config: Path
    out: Path
    overrides: Mapping[str, Any]
    user: Sequence[str] = ()  # the overrides of the command line, under ours
    python: str = sys.executable

    def script(self, name: str, run: str) -> list[str]:
        """A script and its arguments, for a run that writes `out`/`run`."""
        ours = override_arguments({**self.overrides, "output_dir": str(self.out / run)})
        return [str(SCRIPTS / f"{name}.py"), str(self.recipe), *self.user, *ours]

    def train(self, run: str) -> list[str]:
        """The command of a training run that writes `out`/`run`."""
        script = self.script(self.trainer, run)
        if self.trainer == "expert_iteration" or self.processes == 1:
            return [self.python, *script]
        launcher = [self.python, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        return [*launcher, "--config_file", str(self.config), *script]

    @property
    def processes(self) -> int:
        return int(yaml.safe_load(self.config.read_text()).get("num_processes") or 1)

    def environment(self) -> dict[str, str]:
        """Nothing is asked of the hub; the config is named, as plain Python starts a single process."""
        path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH", "")]))
        ours = {
            "HF_HUB_OFFLINE": "1",
            VARIABLE: str(self.config),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": path,
        }
        return {**os.environ, **ours, "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}

    def run(self, name: str, command: Sequence[str]) -> str:
        """Run a command to its end with its output in `out`/logs; returns its last line. Raises StageError."""
        log = self._log(name, command)
        with self._running(command, log) as process:
            code = _exit_code(process, LONGEST_SECONDS)
        if code is None:
            raise StageError(f"{name} took longer than {LONGEST_SECONDS:.0f} s; its output is in {log}")
        if code:
            raise StageError(f"{why(log.read_text())} (exit code {code}; {log})")
        lines = log.read_text().strip().splitlines()
        return lines[-1] if len(lines) > 1 else ""

    def kill(self, name: str, command: Sequence[str], mark: Path) -> None:
        """Start a command, and end it by SIGKILL with all of its processes as soon as the file `mark` is there."""
        log, deadline = self._log(name, command), time.monotonic() + LONGEST_SECONDS
        with self._running(command, log) as process:
            while not mark.exists() and _exit_code(process, 0) is None and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            if process.pid:
                end(process.pid)
        if not mark.exists():
            raise StageError(f"{why(log.read_text())} (no checkpoint came; {log})")

    @contextmanager
    def serving(self, name: str, command: Sequence[str], url: str) -> Iterator[None]:
        """A server while the block lasts, which begins when it answers; raises StageError where it never does."""
        log, deadline = self._log(name, command), time.monotonic() + LONGEST_SECONDS
        with self._running(command, log) as process:
            while not answers(url):
                if _exit_code(process, 1.0) is not None or time.monotonic() > deadline:
                    raise StageError(f"{why(log.read_text())} (the server did not come up; {log})")
            yield

    @contextmanager
    def _running(self, command: Sequence[str], log: Path) -> Iterator[Any]:
        """A command for as long as the block lasts: a fork where it is one of our scripts."""
        if command[0] == sys.executable and command[1].endswith(".py"):
            with forked.running(command[1:], self.environment(), log) as fork:
                yield fork
            return
        with (
            log.open("a") as file,
            processes.running(command, stdout=file, stderr=subprocess.STDOUT, env=self.environment()) as process,
        ):
            yield process

    def _log(self, name: str, command: Sequence[str]) -> Path:
        path = self.out / "logs" / f"{name.replace(' ', '_')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"$ {command_line(command)}\n")
        return path


def _exit_code(process: "subprocess.Popen[Any] | BaseProcess", seconds: float) -> int | None:
    """The exit code of a command that ends within so many seconds, else None."""
    if isinstance(process, BaseProcess):
        process.join(seconds)
        return process.exitcode
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def why(output: str) -> str:
    """What a failed command said: its own error lines, or the end of a traceback."""
    lines = [line for line in output.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if line.startswith("error: "):
            more = [each.strip() for each in lines[place + 1 :] if each.startswith("       ")]
            return " ".join([line.removeprefix("error: "), *more])
    return " ".join(line.strip() for line in lines[1:][-LAST_LINES:]) or "it said nothing"


def same_weights(one: Path, other: Path) -> str:
    """Raise StageError unless two final directories hold the same bytes as weights; returns how many."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    different = [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]
    if different or not files:
        raise StageError(
            f"{other}: {', '.join(different) or 'no weights'}: not what the run that was never killed ends with"
        )
    return f"{sum((one / name).stat().st_size for name in files):,} bytes of weights"


def resumed_from(run: Path) -> str:
    """The checkpoint that the last session of a run went on from; raises StageError where it began anew."""
    record = lineage.read_record(run) or {}
    name = record.get("sessions", [{}])[-1].get("resumed_from")
    if not name:
        raise StageError(f"{run}: the killed run began at step 0 again")
    return str(name)


def mark_of(directory: Path, step: int) -> Path:
    return directory / f"checkpoint-{step}" / checkpoints.MARK
