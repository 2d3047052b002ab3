"""Completions by several processes of this machine, a copy of the model each: one per GPU, or some on a CPU.

On a CPU one process loads the weights and packs them, and the others are its forks: weights are in memory once.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from posttrain import processes
from posttrain.console import machine_line, plural
from posttrain.errors import TRACEBACK, PosttrainError
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

    def __init__(self, number: int, of: int, pipe: Connection, ends: Connection, loader: BaseProcess) -> None:
        """`loader` is the process itself or the one that it is a fork of, which tells through `ends` how it ended."""
        self.number, self.name = number, f"sampling process {number} of {of}"
        self.pipe, self.ends, self.loader, self.pid = pipe, ends, loader, loader.pid

    def send(self, function: Any, piece: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone, which is noticed where its messages are read
            self.pipe.send((function, piece))

    def receive(self) -> tuple[str, Any]:
        """The next message; raises PosttrainError where the process reports a fault or is gone."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
            likely = ", most likely for want of memory" if code == -signal.SIGKILL else ""
            remedy = "use fewer --num_workers and start the command again: it continues"
            raise PosttrainError(f"{self.name} (pid {self.pid}) {how}{likely}; {remedy}") from error
        if kind == FAULT:
            raise PosttrainError(f"{self.name}: {value}")
        return kind, value

    def _exit_code(self) -> int | None:
        with contextlib.suppress(EOFError, OSError):  # then the loader is gone, and its forks with it
            while self.ends.poll(END_SECONDS):
                number, code = self.ends.recv()
                if number == self.number:
                    return code
        self.loader.join(END_SECONDS)
        return self.loader.exitcode

    def end(self) -> None:
        """Kill the process: what it is at, nobody waits for."""
        self.loader.kill()
        self.loader.join()
        self.pipe.close()


def start_workers(count: int, task: Task) -> list[Worker]:
    """Start the processes: one for each GPU, or on a CPU one that forks."""
    context = multiprocessing.get_context("forkserver")
    # The first one ends the server with this command; then what takes long is imported once.
    context.set_forkserver_preload(["posttrain.processes", "posttrain.generation.workers"])
    forkserver.ensure_running()
    numbers, workers = range(1, count + 1), []
    for group in [[number] for number in numbers] if torch.cuda.is_available() else [list(numbers)]:
        pipes = {number: context.Pipe() for number in group}
        ends, told = context.Pipe(duplex=False)
        theirs = {number: their for number, (_, their) in pipes.items()}
        loader = context.Process(target=serve, args=(theirs, told, task))
        loader.start()
        workers += [Worker(number, count, ours, ends, loader) for number, (ours, _) in pipes.items()]
        for connection in (*theirs.values(), told):  # or the end of the other side would not be seen
            connection.close()
    return workers


class WorkerSampler(StretchSampler):
    """Samples by `share.workers` processes; a context manager. The processes end with this one, however it ends."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, batch_size: int, share: Share) -> None:
        self.batch_size, self.share = batch_size, share
        self.busy_before = busy_cores()
        self.workers = start_workers(share.workers, Task(checkpoint, dtype, batch_size, share.threads))
        try:
            for worker in self.workers:
                _, (worker.pid, self.backend, self.device) = worker.receive()
        except BaseException:
            self.close()
            raise

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
                    worker.send(function, waiting.pop())
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


def serve(pipes: dict[int, Connection], ends: Connection, task: Task) -> None:
    """The process: load the model, then do what comes through the pipe of its number, or fork for each of several."""
    processes.end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the command ends its processes
    (number, pipe), *others = pipes.items()
    try:
        sampler, device = open_sampler(number, task, threads=1 if others else task.threads)
    except Exception as error:
        pipe.send((FAULT, one_line(error)))
        return
    if not others:
        work(pipe, sampler, device)
        return
    gc.freeze()  # a collection in a fork would copy every page of Python's own
    loader, forks = os.getpid(), {}
    for number, pipe in pipes.items():
        pid = os.fork()
        if pid == 0:
            processes.end_with_parent(loader)
            for other in (ends, *pipes.values()):
                if other is not pipe:
                    other.close()
            torch.set_num_threads(task.threads or 1)
            work(pipe, sampler, device)
            os._exit(0)
        forks[pid] = number
    for pipe in pipes.values():
        pipe.close()
    while forks:
        pid, status = os.wait()
        with contextlib.suppress(OSError):  # nobody asks any more
            ends.send((forks.pop(pid), os.waitstatus_to_exitcode(status)))


def work(pipe: Connection, sampler: HfSampler, device: str) -> None:
    """Do the pieces that come until the other end is closed."""
    try:
        pipe.send((READY, (os.getpid(), sampler.backend, device)))
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
        pipe.send((FAULT, one_line(error)))


def one_line(error: Exception) -> str:
    """What the command says of an error; POSTTRAIN_TRACEBACK=1 shows where it was raised."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    text = str(error) if isinstance(error, PosttrainError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def open_sampler(number: int, task: Task, threads: int | None) -> tuple[HfSampler, str]:
    """The sampler of process `number`, from 1, and the name of its device."""
    if threads:
        torch.set_num_threads(threads)
    device = "CPU"
    if torch.cuda.is_available():
        torch.cuda.set_device(number - 1)
        device = torch.cuda.get_device_name(number - 1)
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
