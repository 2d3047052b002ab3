"""Hosts on one machine: network namespaces on a switch of their own, that see one another and nothing else.

A host has an address, a name that the others resolve, and a network of its own. It shares files, processor and clock
with this machine. Linux, root, iproute2 and util-linux are needed.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import REPOSITORY, script_environment

Running = subprocess.Popen[str]
NUMBERS = itertools.count()
PREFIX = "posttrain"  # of namespaces: posttrain-PID-NUMBER-NAME, so that what a killed session left is known
# In a mount namespace of its own: the host's name, the names of all in a file, as nobody answers DNS, what `first`
# does, and then the command.
ENTER = """
hostname "$1"
for file in hosts nsswitch.conf; do mount --bind "$2/$file" "/etc/$file"; done
eval "$3"; shift 3; exec "$@"
"""


@dataclass(frozen=True)
class Host:
    """One network namespace, of which every process is one of the host's."""

    name: str
    address: str
    namespace: str
    files: Path  # what lies over /etc

    def command(self, words: Sequence[object], first: str = "true") -> list[str]:
        """The words as a command on this host; `first` are commands of a shell, for mounts that nobody else sees."""
        network = f"--net=/run/netns/{self.namespace}"
        enter = ["nsenter", network, "unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh"]
        return [*enter, self.name, str(self.files), first, *map(str, words)]

    def start(self, *words: object, first: str = "true", **options: Any) -> subprocess.Popen[str]:
        """A command in the background, in a session of its own; `environment` is put over that of scripts."""
        environment = script_environment(config=None) | options.pop("environment", {})
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": REPOSITORY, **options}
        return subprocess.Popen(
            self.command(words, first), env=environment, text=True, start_new_session=True, **options
        )

    def run(self, *words: object, timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on this host until it ends; what it printed is in `stdout`."""
        process = self.start(*words, **options)
        output, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, output)

    def pids(self) -> list[int]:
        """Every process of this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def cut(self) -> None:
        """Pull the cable; what is underway is lost, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", "lan", "down")

    def mend(self) -> None:
        _ip("-n", self.namespace, "link", "set", "lan", "up")

    def power_off(self) -> None:
        """End every process of this host at once, with the cable pulled, so that no peer hears of it."""
        self.cut()
        end_all(self.namespace)


def end_all(namespace: str) -> None:
    """SIGKILL for every process of a namespace, until none is left."""
    while pids := _ip("netns", "pids", namespace).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


def why_not() -> str | None:
    """Why there can be no hosts here, or None."""
    missing = [name for name in ("ip", "nsenter", "unshare", "hostname") if not shutil.which(name)]
    if missing:
        return f"hosts need {', '.join(missing)}: apt-get install iproute2 util-linux hostname"
    if os.geteuid() != 0:
        return "hosts need root"
    namespace = f"{PREFIX}-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {' '.join(tried.stderr.split())}"
    tried = subprocess.run(
        ["ip", "-n", namespace, "link", "add", "left", "type", "veth", "peer", "name", "right"],
        capture_output=True,
        text=True,
    )
    _ip("netns", "del", namespace)
    if tried.returncode == 0:
        tried = subprocess.run(["unshare", "--uts", "--mount", "hostname", "try"], capture_output=True, text=True)
    return f"no hosts here: {' '.join(tried.stderr.split())}" if tried.returncode else None


@contextmanager
def hosts(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts of these names on one switch; at the end of the block they are gone, with every process in them."""
    remove_orphans()
    own = f"{PREFIX}-{os.getpid()}-{next(NUMBERS)}"
    switch = f"{own}-switch"
    files = Path(tempfile.mkdtemp(prefix=f"{own}-"))
    made = {name: Host(name, f"10.77.0.{i}", f"{own}-{name}", files) for i, name in enumerate(names, 1)}
    known = [f"{host.address} {host.name}" for host in made.values()]
    (files / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
    (files / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made.values()):
            _plug_in(host, switch, f"port{number}")
        yield made
    finally:
        for host in made.values():
            _remove(host.namespace)
        _remove(switch)
        shutil.rmtree(files)


@contextmanager
def four_hosts() -> Iterator[dict[str, Host]]:
    """Two trainers, a server and a client; the test is skipped where this machine cannot have them."""
    if reason := why_not():
        pytest.skip(reason)
    with hosts("trainer1", "trainer2", "server", "client") as made:
        yield made


def launched(
    own: dict[str, Host], config: str | Path, words: Sequence[object], python: object = sys.executable,
    second: dict[str, Any] | None = None, **options: Any,
) -> list[Running]:  # fmt: skip
    """A script started on both trainers by `accelerate launch`, one process on each; `second` is for the other one."""
    main = own["trainer1"].address
    return [
        own[name].start(
            python, "-m", "accelerate.commands.launch", "--config_file", config, "--num_machines", 2,
            "--machine_rank", rank, "--num_processes", 2, "--main_process_ip", main, "--main_process_port", 29500,
            *words, **options, **((second or {}) if rank else {}),
        )
        for rank, name in enumerate(("trainer1", "trainer2"))
    ]  # fmt: skip


def outputs(processes: Sequence[Running], timeout: float = 600) -> list[str]:
    """What each command printed, once all have ended."""
    deadline = time.monotonic() + timeout
    return [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0] for process in processes]


def _plug_in(host: Host, switch: str, port: str) -> None:
    _ip("netns", "add", host.namespace)
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "lan", "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "lan")
    for device in ("lo", "lan"):
        _ip("-n", host.namespace, "link", "set", device, "up")


def _remove(namespace: str) -> None:
    if namespace in _namespaces():
        end_all(namespace)
        _ip("netns", "del", namespace)


def remove_orphans() -> None:
    """Remove the hosts of sessions that were killed before they could."""
    for namespace in _namespaces():
        prefix, _, rest = namespace.partition("-")
        pid = rest.partition("-")[0]
        if prefix == PREFIX and pid.isdigit() and not psutil.pid_exists(int(pid)):
            _remove(namespace)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line]


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
