"""Completions by several processes of this machine, a copy of the model each: one per GPU, or some on a CPU.

Every process packs its weights (`packed_weights`), which makes them its own; those that stay as their file has them are
mapped, and in memory once.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from posttrain import processes
from posttrain.console import machine_line, plural
from posttrain.errors import PosttrainError
from posttrain.generation.packed_weights import pack_weights
from posttrain.generation.sample import Tick
from posttrain.generation.samplers import HfSampler, StretchSampler
from posttrain.generation.share import Share
from posttrain.hardware import busy_cores, crowding, usable_cores
from posttrain.models.loading import Checkpoint, load_model

TELL_SECONDS = 0.2  # between two messages on how many tokens came
END_SECONDS = 5.0  # that a process whose pipe is at its end takes to be gone
READY, ITEM, TOKENS, DONE, FAULT = "ready", "item", "tokens", "done", "fault"


@dataclass(frozen=True)
class Task:
    """What a process loads, and how: everything that makes it an HfSampler."""

    checkpoint: Checkpoint
    dtype: str
    batch_size: int
    threads: int | None


class Worker:
    """A process with a sampler, which does one piece after another; `number` counts from 1."""

    def __init__(self, number: int, of: int, task: Task) -> None:
        context = multiprocessing.get_context("forkserver")
        # The first one ends the server with this command; then what takes long is imported once, for all of them.
        context.set_forkserver_preload(["posttrain.processes", "posttrain.generation.workers"])
        forkserver.ensure_running()
        self.pipe, theirs = context.Pipe()
        self.name = f"sampling process {number} of {of}"
        self.process = context.Process(target=serve, args=(theirs, number - 1, task), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> tuple[str, Any]:
        """The next message; raises PosttrainError where the process reports a fault or is gone."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise PosttrainError(f"{self.name} (pid {self.process.pid}) {self._end()}") from error
        if kind == FAULT:
            raise PosttrainError(f"{self.name}: {value}")
        return kind, value

    def _end(self) -> str:
        self.process.join(END_SECONDS)
        code = self.process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        likely = ", most likely for want of memory" if code == -signal.SIGKILL else ""
        return f"{how}{likely}; use fewer --num_workers and start the command again: it continues"

    def end(self) -> None:
        """Kill the process: what it is at, nobody waits for."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class WorkerSampler(StretchSampler):
    """Samples by `share.workers` processes; a context manager. The processes end with this one, however it ends."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, batch_size: int, share: Share) -> None:
        self.batch_size, self.share = batch_size, share
        self.busy_before = busy_cores()
        task = Task(checkpoint, dtype, batch_size, share.threads)
        self.workers: list[Worker] = []
        try:
            for number in range(1, share.workers + 1):
                self.workers.append(Worker(number, share.workers, task))
            ready = [worker.receive()[1] for worker in self.workers]
        except BaseException:
            self.close()
            raise
        self.backend, self.device = ready[0]

    def __enter__(self) -> "WorkerSampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        while self.workers:
            self.workers.pop().end()

    def machine(self) -> dict[str, str]:
        """What computes, how many completions at once in each process, and whether they find a core each."""
        n, threads = self.share.workers, self.share.threads or 1
        line = machine_line(self.device, n, threads, self.backend["dtype"], self.backend["attention"])
        crowded = crowding(threads, n, usable_cores(), self.busy_before) if self.device == "CPU" else None
        return {"machine": f"{line}, {plural(self.batch_size, 'answer')} at once in each", "warning": crowded or ""}

    def over(self, function: Any, pieces: Sequence[Any], tick: Tick) -> Iterator[Any]:
        """Every piece goes to the next process that is free; `function` and pieces are pickled.

        Raises PosttrainError with one line where a process fails or is killed; then all of them end.
        """
        waiting, idle = list(reversed(pieces)), list(self.workers)
        busy: dict[Connection, Worker] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    worker = idle.pop()
                    busy[worker.pipe] = worker
                    worker.pipe.send((function, waiting.pop()))
                for pipe in wait(list(busy)):
                    kind, value = busy[pipe].receive()
                    if kind == TOKENS:
                        tick(value)
                    elif kind == ITEM:
                        yield value
                    else:
                        idle.append(busy.pop(pipe))
        finally:
            if busy:  # an error here or there, or nobody wants the rest: what they would still say belongs to nothing
                self.close()


def serve(pipe: Connection, number: int, task: Task) -> None:
    """The process: load the model, then do the pieces that come until the other end is closed."""
    processes.end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the command ends its processes
    try:
        sampler, device = open_sampler(number, task)
        pipe.send((READY, (sampler.backend, device)))
        counted = Counted(pipe)
        while True:
            function, piece = pipe.recv()
            for item in function(sampler, piece, counted.tick):
                pipe.send((ITEM, item))
            counted.tell()
            pipe.send((DONE, None))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        if os.environ.get("POSTTRAIN_TRACEBACK"):
            raise
        text = str(error) if isinstance(error, PosttrainError) else f"{type(error).__name__}: {error}"
        pipe.send((FAULT, " ".join(text.split())))


def open_sampler(number: int, task: Task) -> tuple[HfSampler, str]:
    """The sampler of process `number`, from 0, and the name of its device."""
    if task.threads:
        torch.set_num_threads(task.threads)
    device = "CPU"
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
        device = torch.cuda.get_device_name(number)
    model = pack_weights(load_model(task.checkpoint, task.dtype))
    return HfSampler(model, task.checkpoint.tokenizer, task.batch_size), device


class Counted:
    """Sums tokens up and tells them now and then: a message for every step would be the most of them."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.tokens, self.told = pipe, 0, time.monotonic()

    def tick(self, tokens: int) -> None:
        self.tokens += tokens
        if time.monotonic() - self.told > TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        self.pipe.send((TOKENS, self.tokens))
        self.tokens, self.told = 0, time.monotonic()
