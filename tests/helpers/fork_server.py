"""A process that has imported what every script imports, and forks a child per request (the client is `forked.py`).

A request is one JSON message with the child's three streams. The child is forked twice, so that it is adopted by
the process that asked, and the reply is its pid. The server starts no thread and touches no GPU before it forks.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path

# What takes the time. TRL's trainers bring torch, transformers, peft, accelerate and datasets; Accelerate, DeepSpeed.
PRELOAD = (
    "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "trl.trainer.dpo_trainer", "trl.trainer.reward_trainer",
    "scipy.stats", "deepspeed",
)  # fmt: skip
LONGEST = 1 << 20  # bytes of a request: arguments and environment


def serve(connection: socket.socket) -> dict:
    """Answer requests until the client closes, which ends the process. Returns in a child alone, with its request."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, LONGEST, 3)
        if not message:
            sys.exit()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            pid = os.fork()
            if pid:
                os.write(writing, str(pid).encode())
                os._exit(0)
            while os.getppid() == between:  # adopted in a moment
                time.sleep(0.001)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, max(connection.fileno(), writing, *streams) + 1)
            return json.loads(message)
        os.waitpid(between, 0)  # from here on the child belongs to the client
        connection.send(os.read(reading, 20))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def become(request: dict) -> None:
    """Take on what `python script arguments` would have been started with."""
    import numpy

    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(request["arguments"][0]).resolve().parent)
    numpy.random.seed()  # every process has its own, as every import gives it one


class Ending:
    """Leaves out how an interpreter ends after its exit handlers: freeing all that was imported takes a second."""

    code: int | None = None  # known where the script came to its end or called exit(number)

    def leave(self) -> None:
        if self.code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


def run(path: str, ending: Ending) -> None:
    try:
        runpy.run_path(path, run_name="__main__")
        ending.code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        ending.code = end.code or 0


if __name__ == "__main__":
    ending = Ending()
    atexit.register(ending.leave)  # before all others, so it is called last
    for name in PRELOAD:
        with contextlib.suppress(ModuleNotFoundError):  # of what is not required
            importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a fork would leave their locks held"
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    run(sys.argv[0], ending)
