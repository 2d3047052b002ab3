"""Python scripts forked from a server that has done their imports: 0.1 s each, where a new interpreter takes 5.

A forked script has its own pid, arguments, environment and streams, and is a child of the tests' process, so signals,
exit codes and psutil work as they do for `python script.py`. Two things differ: scripts share the hash seed of
their server, and what the server has imported is imported.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORKS = sys.platform == "linux" and not Path("/dev/nvidia0").exists()  # CUDA may be asked for, and survives no fork
PR_SET_CHILD_SUBREAPER = 36
READ_LATE = "POSTTRAIN_"  # variables that only posttrain reads, which is imported in the child


class ForkServer:
    """One for each working directory and environment."""

    def __init__(self, directory: str, environment: dict[str, str]) -> None:
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
            cwd=directory, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.log, env={**environment, "JE_ARROW_MALLOC_CONF": "background_thread:false"},
        )  # fmt: skip
        theirs.close()
        atexit.register(self.close)

    def start(self, arguments: list[str], environment: dict[str, str], streams: list[int]) -> int:
        """Returns the pid of a script that is now a child of this process."""
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # adopts the child, whose parent in the server ends
        try:
            request = json.dumps({"arguments": arguments, "environment": environment})
            socket.send_fds(self.connection, [request.encode()], streams)
            reply = self.connection.recv(20)
        except ConnectionError:
            reply = b""
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if not reply:
            self.log.seek(0)
            raise RuntimeError(f"the fork server ended: {self.log.read().decode()}")
        return int(reply)

    def close(self) -> None:
        self.connection.close()
        self.process.wait()


server = functools.cache(lambda directory, environment: ForkServer(directory, dict(environment)))


class ForkedScript:
    """What `subprocess.Popen([sys.executable, *arguments])` offers of a process; its streams are files."""

    def __init__(self, arguments: list[str], directory: Path, environment: dict[str, str], streams: list[int]) -> None:
        shared = tuple(sorted((k, v) for k, v in environment.items() if not k.startswith(READ_LATE)))
        self.args, self.returncode = arguments, None
        self.pid = server(str(directory), shared).start(arguments, environment, streams)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline, pause = time.monotonic() + timeout, 0.001
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen | ForkedScript


def start_python(arguments: list[str], directory: Path, environment: dict[str, str], streams: list[int], fresh: bool):
    """`python *arguments`: forked where that is a script, by a new interpreter where it is not or a test wants one."""
    one_thread = environment.get("OMP_NUM_THREADS") == "1"  # or the libraries of the server start others
    if FORKS and one_thread and not fresh and arguments[0].endswith(".py"):
        return ForkedScript(arguments, directory, environment, streams)
    stdin, stdout, stderr = streams
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=directory, env=environment, stdin=stdin, stdout=stdout, stderr=stderr)


@contextlib.contextmanager
def capturing(text: str = ""):
    """Three files for the streams of a process, the first of which holds `text`."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3)]
        files[0].write(text)
        files[0].seek(0)
        yield files
