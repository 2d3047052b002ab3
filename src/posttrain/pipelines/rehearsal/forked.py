"""Scripts as forks of one process that has imported what they import: each starts at once instead of after seconds.

A fork has arguments, environment, output and a pid of its own, and dies like any other process. The server has imported
libraries and computed nothing, so there is nothing half done in it to inherit.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from posttrain import processes
from posttrain.pipelines.study.trial import end

PRELOAD = ["posttrain.processes", "posttrain.methods.sft", "trl.trainer.grpo_trainer", "peft", "scipy.stats"]
FIXED = {"HF_HUB_OFFLINE": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # read while libraries are imported


def start_server() -> None:
    """Start the server, which imports while this process goes on with other work."""
    before = {name: os.environ.get(name) for name in FIXED}
    os.environ.update(FIXED)
    try:
        # Handed on to the tracker, which else warns of locks that a killed script leaves.
        sys.warnoptions.append("ignore:resource_tracker")
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
        sys.warnoptions.pop()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def running(script: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[BaseProcess]:
    """`python script…` for as long as the block lasts, its output at the end of `log`."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_become, args=(list(script), dict(environment), str(log)))
    process.start()
    try:
        yield process
    finally:
        if process.is_alive() and process.pid:
            end(process.pid)
        process.join()


def _become(script: list[str], environment: dict[str, str], log: str) -> None:
    """In the fork: take on what `python script…` would have been started with, and run it."""
    processes.end_with_parent(os.getppid())
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = script
    sys.path[0] = str(Path(script[0]).parent)
    runpy.run_path(script[0], run_name="__main__")
