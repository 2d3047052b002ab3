"""Measure what faults of machines and networks cost each phase, and write the table of docs/results/faults.md.

    make faults                                  # ARGS="--only SFT 'node gone'" for one cell or a row

A cell starts the phase on hosts of its own, strikes when it is half done, waits for the end of every process, starts
the same command again, and compares the result with that of a run that nothing struck. What was measured is kept in
docs/results/faults.jsonl, and not measured again. Root and Linux are needed, bindfs for a directory that lags, and
vLLM for the phases with a server.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from cluster_runs import write_traces
from conftest import REPOSITORY, must, run_script
from hosts import Host, Running, end_all, four_hosts, outputs
from phases import PHASES, Ground, Phase, served
from vllm_host import VllmHost

PAGE, KEPT = REPOSITORY / "docs/results/faults.md", REPOSITORY / "docs/results/faults.jsonl"
BEGIN, END = "<!-- begin: python tests/cluster/faults.py -->\n", "<!-- end: python tests/cluster/faults.py -->"
WAIT_SECONDS = 20  # of ddp_timeout, where a fault does not pass
SERVER_WAIT_SECONDS = 60  # of it, where one process asks a server meanwhile
PATIENCE_SECONDS = 600  # for a cell's command, on a busy machine
LAG_SECONDS = 10
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@dataclass(frozen=True)
class Cell:
    """What was measured of one fault in one phase."""

    phase: str
    fault: str
    went_on: bool  # the fault did not end it
    seconds: float  # to the end of the last process, or of the run where it went on
    line: str  # the error's, of the first host that says one
    lost: int  # steps done and done again
    exact: bool
    left: int  # processes


@dataclass(frozen=True)
class Fault:
    """What is done to a host, or to the disk, and undone before the command starts again."""

    strike: Callable[[Host, Path], None] = lambda host, disk: None
    heal: Callable[[Host, Path], None] = lambda host, disk: None
    wait: int = WAIT_SECONDS
    second: dict[str, object] = field(default_factory=dict)  # options of the second host's commands
    lags: bool = False  # the second host sees the disk through a file system that remembers what it saw


def cut_for_a_while(host: Host, disk: Path) -> None:
    host.cut()
    time.sleep(20)
    host.mend()


def stop_and_go(stop: float, go: float, times: int) -> Callable[[Host, Path], None]:
    """Every process of a host stands still for `stop` seconds and runs for `go` seconds, so many times."""

    def strike(host: Host, disk: Path) -> None:
        for _ in range(times):
            pids = host.pids()
            for signum, seconds in ((signal.SIGSTOP, stop), (signal.SIGCONT, go)):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)
                time.sleep(seconds)

    return strike


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def kill_largest(host: Host, disk: Path) -> None:
    """As a kernel does that is out of memory."""
    processes = [psutil.Process(pid) for pid in host.pids()]
    max(processes, key=lambda process: process.memory_info().rss).kill()


FAULTS = {
    "link cut for 20 s": Fault(cut_for_a_while, wait=300),
    "link cut": Fault(lambda host, disk: host.cut(), lambda host, disk: host.mend()),
    "node gone": Fault(lambda host, disk: host.power_off(), lambda host, disk: host.mend()),
    "processes of a node killed": Fault(lambda host, disk: end_all(host.namespace)),
    "out of memory": Fault(kill_largest),
    "node stands still for 20 s": Fault(stop_and_go(20, 0, 1), wait=300),
    "slow node": Fault(stop_and_go(0.9, 0.1, 20), wait=300),
    "disk full": Fault(lambda host, disk: fill(disk), lambda host, disk: (disk / "filler").unlink(), wait=60),
    "a node's own disk full": Fault(
        lambda host, disk: fill(Path(f"/proc/{host.pids()[-1]}/root/tmp")),
        wait=60, second={"first": "mount -t tmpfs -o size=16m tmpfs /tmp"},
    ),
    "clock an hour ahead": Fault(second={"environment": {"LD_PRELOAD": FAKETIME, "FAKETIME": "+1h"}}, wait=300),
    "directory lags": Fault(lambda host, disk: end_all(host.namespace), lags=True),
}  # fmt: skip


@dataclass(frozen=True)
class Bed:
    """The hosts of all cells, what they read, and a server that lives as long as no fault ends it."""

    hosts: dict[str, Host]
    data: Path
    work: Path
    server: VllmHost

    def ground(self, phase: Phase, out: Path, wait: int = 300, second: dict[str, object] | None = None) -> Ground:
        """Where a phase runs; its server is up."""
        if phase.struck == "server":
            self.server.start()
            wait = max(wait, SERVER_WAIT_SECONDS)
        return Ground(self.hosts, self.data, out, wait, second or {}, self.server)

    def pids(self) -> list[int]:
        """Processes of every host, but of a server that goes on."""
        up = self.server.process is not None and self.server.process.poll() is None
        return [pid for host in self.hosts.values() if not (up and host is self.server.host) for pid in host.pids()]


@contextmanager
def bed(work: Path) -> Iterator[Bed]:
    data = prepared(work / "data")
    with four_hosts() as hosts:
        nowhere = Ground(hosts, data, work / "unused")
        yield Bed(hosts, data, work, VllmHost(hosts, served(nowhere)[1:], work / "server.log"))


def measure(phase_name: str, fault_name: str, bed: Bed) -> Cell:
    """One cell, in a directory that is a small disk of its own."""
    phase, fault = PHASES[phase_name], FAULTS[fault_name]
    expected = reference(phase_name, bed)
    with small_disk(bed.work / "disk") as disk, second_view(disk, fault) as second:
        out, host = disk / "run", bed.hosts[phase.struck]
        ground = bed.ground(phase, out, wait=fault.wait, second=second)
        started = phase.start(ground)
        wait_until(lambda: phase.done(out) >= phase.half or all(p.poll() is not None for p in started))
        running, at = all(process.poll() is None for process in started), phase.done(out)
        assert running, outputs(started)
        begun = time.monotonic()
        fault.strike(host, disk)
        printed = outputs(started, PATIENCE_SECONDS)
        seconds = time.monotonic() - begun
        left = len(bed.pids())
        went_on, lost = all(process.returncode == 0 for process in started), max(0, at - phase.kept(out))
        fault.heal(host, disk)
        if not went_on:
            ended_well(phase.start(bed.ground(phase, out, wait=fault.wait, second=second)))
        ended_well(phase.finish(ground))
        exact = phase.result(out) == expected
    told = [line for text in printed for line in text.splitlines() if line.startswith("error: ")]
    line = (told or [""])[0].replace(str(out), "outputs/run")
    if not went_on:
        (bed.work / f"{phase_name}, {fault_name}.log").write_text("\n\n".join(printed))
    return Cell(phase_name, fault_name, went_on, round(seconds, 1), line, 0 if went_on else lost, exact, left)


def ended_well(started: Sequence[Running]) -> None:
    printed = outputs(started, PATIENCE_SECONDS)
    assert all(process.returncode == 0 for process in started), printed


def reference(phase_name: str, bed: Bed) -> object:
    """The result of a run that nothing strikes, made once."""
    phase, out = PHASES[phase_name], bed.work / f"whole_{phase_name.replace(' ', '_')}" / "run"
    if phase.expected is not None:
        return phase.expected
    if not (out.parent / "whole").exists():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        ground = bed.ground(phase, out)
        ended_well(phase.start(ground))
        ended_well(phase.finish(ground))
        (out.parent / "whole").touch()
    return phase.result(out)


def prepared(data: Path) -> Path:
    """The tiny world, traces, and a model that answers some of its questions, made once."""
    if not (data / "model").is_dir():
        (data / "traces").mkdir(parents=True, exist_ok=True)
        write_traces(data / "traces", files=8, rows=400)
        must(run_script("data_prep/tiny_math.py", "--out", data, "--train", 600, "--test", 60))
        early = ("--dataset_name", data / "tiny_math", "--eval_strategy", "no", "--sample_generations", 0)
        early += ("--num_train_epochs", 6)  # so many that some answers are right, and there is something to learn
        must(run_script("src/sft.py", "recipes/tiny_sft_early.yaml", *early, "--output_dir", data / "early"))
        shutil.copytree(data / "early/final", data / "model")
    return data


@contextmanager
def second_view(disk: Path, fault: Fault) -> Iterator[dict[str, object]]:
    """Options of the second host's commands: with a disk that lags, it believes for seconds what it once saw."""
    if not fault.lags:
        yield fault.second
        return
    view = disk.with_name("lagging")
    view.mkdir(exist_ok=True)
    remembers = ",".join(f"{what}_timeout={LAG_SECONDS}" for what in ("attr", "entry", "negative"))
    subprocess.run(["bindfs", "-o", remembers, disk, view], check=True)
    try:
        yield {"first": f"mount --bind {view} {disk}"}
    finally:
        subprocess.run(["umount", "--lazy", view], check=True)


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of 96 MiB, which every host sees."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def table(cells: Sequence[Cell]) -> str:
    """The table of the page."""
    rows = [
        "| phase | fault | what happens | seconds | lost | same result | processes left |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        said = re.sub(r"^error: (process \d+: )?", "", cell.line).partition("; ")[0]
        happens = "goes on" if cell.went_on else f"“{said}”" if said else "its node ends with it"
        exact = "yes" if cell.exact else "**no**"
        rows.append(
            f"| {cell.phase} | {cell.fault} | {happens} | {cell.seconds} | {cell.lost} | {exact} | {cell.left} |"
        )
    return "\n".join([*rows, ""])


def write_page(cells: Sequence[Cell]) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(cells) + "\n" + END + rest.partition(END)[2])


def kept() -> list[Cell]:
    """The cells measured so far."""
    return [Cell(**json.loads(line)) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/faults"), help="where runs and logs are written")
    parser.add_argument("--only", nargs="+", default=[], help="phases, faults, or both; all without it")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    given = parser.parse_args()
    order = [(phase, fault) for phase in PHASES for fault in FAULTS if fault in PHASES[phase].faults]
    phases, faults = {*PHASES} & {*given.only} or {*PHASES}, {*FAULTS} & {*given.only} or {*FAULTS}
    measured = set() if given.again else {(cell.phase, cell.fault) for cell in kept()}
    asked = [(phase, fault) for phase, fault in order if phase in phases and fault in faults]
    with bed(given.work.resolve()) as ready:
        for phase, fault in (pair for pair in asked if pair not in measured):
            cell = measure(phase, fault, ready)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            print(cell, f"{used.ru_utime + used.ru_stime:.0f} CPU seconds so far", flush=True)
            others = [one for one in kept() if (one.phase, one.fault) != (phase, fault)]
            cells = sorted([*others, cell], key=lambda one: order.index((one.phase, one.fault)))
            KEPT.write_text("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in cells))
            write_page(cells)


if __name__ == "__main__":
    main()
