"""Parts made by processes of this machine, or by a `datatrove` pipeline on many: all write to one directory.

The command that started them finds the parts as if it had made them, so the result is the same to the byte.
"""

import functools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from posttrain import processes
from posttrain.data.traces.contamination import Index
from posttrain.data.traces.inputs import Input, Item, batches
from posttrain.data.traces.parts import PartMaker, Settings, mark_part, write_part
from posttrain.digests import file_digest
from posttrain.errors import PosttrainError

# The first one ends a server of forks with this command, also while it imports the others.
PRELOAD = ["posttrain.processes", "posttrain.data.traces.workers", "posttrain.data.encode"]


def start_forkserver() -> ForkServerContext:
    """Start what the processes are forked from, unless it runs: called early, its imports overlap with the caller's."""
    context = multiprocessing.get_context("forkserver")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process each is enough
    context.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    return context


def make_parts(
    inputs: list[Input], settings: Settings, index: Index, directory: Path, n_processes: int
) -> Iterator[tuple[Path, int]]:
    """Paths of all parts, in order of the inputs, and the bytes of lines in each; those that exist are not made again.

    Raises what ended an input, after the parts before it are on disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if n_processes == 1:
        yield from _one_by_one(inputs, settings, index, directory)
        return
    waiting: deque[tuple[Path | Future[Path], int]] = deque()
    with ProcessPoolExecutor(n_processes, start_forkserver(), _start, (settings, index)) as pool:
        try:
            for batch, path, whole in _batches(inputs, directory):
                waiting.append((whole or pool.submit(_write, batch, path), sum(len(line) for _, line in batch)))
                while len(waiting) > 2 * n_processes:
                    yield _finished(waiting)
            while waiting:
                yield _finished(waiting)
        except BrokenProcessPool as error:
            raise PosttrainError(
                "a process died, most likely for want of memory; use fewer --processes and start the command again: "
                "it continues"
            ) from error
        except (processes.Interrupted, KeyboardInterrupt, GeneratorExit):  # nobody waits for what they are at
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(inputs: list[Input], directory: Path) -> Iterator[tuple[list[Item], Path, Path | None]]:
    """Batches, what their part is called before its digest, and the part where it is there and whole."""
    there = {path.name.partition(".")[0]: path for path in sorted(directory.glob("*.*.arrow"))}
    for one in inputs:
        for number, batch in enumerate(batches(one.items())):
            name = f"{one.digest[:16]}-{number:06d}"
            yield batch, directory / f"{name}.arrow", _whole(there.get(name))


def _whole(path: Path | None) -> Path | None:
    """A part whose bytes are those that were written; says so and removes it where they are not."""
    if path is None or file_digest(path) == path.suffixes[0][1:]:
        return path
    print(f"{path}: changed on disk after it was written: it is made again", file=sys.stderr)
    path.unlink(missing_ok=True)
    return None


def _one_by_one(inputs: list[Input], settings: Settings, index: Index, directory: Path) -> Iterator[tuple[Path, int]]:
    maker = None
    for batch, path, whole in _batches(inputs, directory):
        if whole is None:
            maker = maker or PartMaker(settings, index)
            whole = mark_part(write_part(maker.table(batch), path))
        yield whole, sum(len(line) for _, line in batch)


def _finished(waiting: deque[tuple[Path | Future[Path], int]]) -> tuple[Path, int]:
    part, size = waiting.popleft()
    return part if isinstance(part, Path) else part.result(), size


MAKERS: list[PartMaker] = []  # the one of this process


def _start(settings: Settings, index: Index) -> None:
    processes.end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the command ends its processes
    MAKERS.append(PartMaker(settings, index))


def _write(batch: list[Item], path: Path) -> Path:
    return mark_part(write_part(MAKERS[0].table(batch), path))


@dataclass(frozen=True)
class Tasks:
    """How the inputs are shared out: tasks, processes for them here, and the Kth of N shares (K from 0) to run here."""

    number: int
    workers: int
    share: tuple[int, int] = (0, 1)
    slurm: str | None = None  # submit them instead: partition:hours:minutes:seconds

    def own(self) -> range:
        """The tasks of this share."""
        k, n = self.share
        return range(k * self.number // n, (k + 1) * self.number // n)


def make_parts_by_tasks(inputs: list[Input], settings: Settings, index: Index, directory: Path, tasks: Tasks) -> None:
    """Run this share of the tasks here, or submit all of them as a job array and end."""
    try:
        import multiprocess
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    except ImportError as error:
        raise PosttrainError(f"--tasks needs datatrove: pip install -e '.[nodes]' ({error})") from error
    pipeline = [functools.partial(_task, inputs, settings, index, directory)]
    logs = str(directory / "datatrove")
    if tasks.slurm is None:
        multiprocess.set_forkserver_preload(PRELOAD)
        if own := tasks.own():
            executor = LocalPipelineExecutor(
                pipeline, tasks.number, tasks.workers, logging_dir=f"{logs}_{own.start}", skip_completed=False,
                local_tasks=len(own), local_rank_offset=own.start,
            )  # fmt: skip
            with processes.forks_end_with_this():
                executor.run()
        return
    partition, _, time = tasks.slurm.partition(":")
    SlurmPipelineExecutor(pipeline, tasks.number, time, partition, logging_dir=logs, skip_completed=False).run()
    raise PosttrainError("the job array is submitted; when it is done, start the same command without --slurm")


def _task(
    inputs: list[Input], settings: Settings, index: Index, directory: Path, _data: Any, rank: int, world_size: int
) -> None:
    for _ in make_parts(inputs[rank::world_size], settings, index, directory, n_processes=1):
        pass
