"""Measure what faults of machines and networks cost each phase, and write the table of docs/results/faults.md.

    make faults                                  # ARGS="--only SFT 'node gone'" for one cell or a row

A cell starts the phase on hosts of its own, strikes when it is half done, waits for the end of every process, starts
the same command again, and compares the result with that of a run that nothing struck. Root and Linux are needed.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster_runs import write_traces
from conftest import REPOSITORY, must, run_script
from hosts import Host, end_all, four_hosts, outputs
from phases import PHASES

PAGE = REPOSITORY / "docs/results/faults.md"
BEGIN, END = "<!-- begin: python tests/cluster/faults.py -->\n", "<!-- end: python tests/cluster/faults.py -->"
WAIT_SECONDS = 20  # of ddp_timeout, where a fault does not pass
PATIENCE_SECONDS = 600  # for a cell's command, on a busy machine
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
    """What is done to the second host, or to the disk, and undone before the command starts again."""

    strike: Callable[[Host, Path], None] = lambda host, disk: None
    heal: Callable[[Host, Path], None] = lambda host, disk: None
    wait: int = WAIT_SECONDS
    network: bool = False  # of no use to a phase of one host
    second: dict[str, object] | None = None  # options of the second host's commands


def cut_for_a_while(host: Host, disk: Path) -> None:
    host.cut()
    time.sleep(20)
    host.mend()


def stall(host: Host, disk: Path) -> None:
    pids = host.pids()
    for signum in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        time.sleep(20 if signum == signal.SIGSTOP else 0)


def fill(host: Host, disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


FAULTS = {
    "link cut for 20 s": Fault(cut_for_a_while, wait=300, network=True),
    "link cut": Fault(lambda host, disk: host.cut(), lambda host, disk: host.mend(), network=True),
    "node gone": Fault(lambda host, disk: host.power_off(), lambda host, disk: host.mend()),
    "processes of a node killed": Fault(lambda host, disk: end_all(host.namespace), network=True),
    "node stands still for 20 s": Fault(stall, wait=300),
    "disk full": Fault(fill, lambda host, disk: (disk / "filler").unlink(), wait=60),
    "clock an hour ahead": Fault(second={"environment": {"LD_PRELOAD": FAKETIME, "FAKETIME": "+1h"}}, wait=300),
}


def measure(phase_name: str, fault_name: str, data: Path, work: Path) -> Cell:
    """One cell, in a directory that is a small disk of its own."""
    phase, fault = PHASES[phase_name], FAULTS[fault_name]
    expected = reference(phase_name, data, work)
    with four_hosts() as own, small_disk(work / "disk") as disk:
        out, host = disk / "run", own["trainer2"]
        started = phase.start(own, data, out, fault.wait, fault.second or {})
        wait_until(lambda: phase.done(out) >= phase.half or all(p.poll() is not None for p in started))
        running, at = all(process.poll() is None for process in started), phase.done(out)
        assert running, outputs(started)
        begun = time.monotonic()
        fault.strike(host, disk)
        printed = outputs(started, PATIENCE_SECONDS)
        seconds = time.monotonic() - begun
        left = sum(len(each.pids()) for each in own.values())
        went_on, lost = all(process.returncode == 0 for process in started), max(0, at - phase.kept(out))
        if not went_on:
            fault.heal(host, disk)
            again = phase.start(own, data, out, fault.wait, fault.second or {})
            text = outputs(again, PATIENCE_SECONDS)
            assert all(process.returncode == 0 for process in again), text
        exact = phase.result(out) == expected
    told = [line for text in printed for line in text.splitlines() if line.startswith("error: ")]
    return Cell(
        phase_name, fault_name, went_on, round(seconds, 1), (told or [""])[0], 0 if went_on else lost, exact, left
    )


def reference(phase_name: str, data: Path, work: Path) -> object:
    """The result of a run that nothing strikes, made once."""
    phase, out = PHASES[phase_name], work / f"whole_{phase_name.replace(' ', '_')}" / "run"
    if not (out.parent / "whole").exists():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        with four_hosts() as own:
            started = phase.start(own, data, out, 300, {})
            text = outputs(started, PATIENCE_SECONDS)
            assert all(process.returncode == 0 for process in started), text
        (out.parent / "whole").touch()
    return phase.result(out)


def prepared(data: Path) -> Path:
    """The tiny world, traces, and a model that answers some of its questions, made once."""
    if not (data / "model").is_dir():
        (data / "traces").mkdir(parents=True, exist_ok=True)
        write_traces(data / "traces", files=8, rows=400)
        must(run_script("data_prep/tiny_math.py", "--out", data, "--train", 400, "--test", 60))
        early = ("--dataset_name", data / "tiny_math", "--eval_strategy", "no", "--sample_generations", 0)
        must(run_script("src/sft.py", "recipes/tiny_sft_early.yaml", *early, "--output_dir", data / "early"))
        shutil.copytree(data / "early/final", data / "model")
    return data


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
        said = re.sub(r"/\S*/disk/run", "outputs/run", said)
        happens = "goes on" if cell.went_on else f"“{said}”" if said else "the node ends with it"
        exact = "yes" if cell.exact else "**no**"
        rows.append(
            f"| {cell.phase} | {cell.fault} | {happens} | {cell.seconds} | {cell.lost} | {exact} | {cell.left} |"
        )
    return "\n".join([*rows, ""])


def write_page(cells: Sequence[Cell]) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(cells) + "\n" + END + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/faults"), help="where measured cells are kept")
    parser.add_argument("--only", nargs="+", default=[], help="a phase, a fault, or both; all without it")
    given = parser.parse_args()
    work = given.work.resolve()
    data = prepared(work / "data")
    kept = work / "cells.jsonl"
    for fault, phase in itertools.product(FAULTS, PHASES):
        cells = [Cell(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
        one_host = phase not in ("SFT", "GRPO")
        asked = all({phase, fault} & set(names) for names in (given.only or [phase],))
        if (
            not asked
            or (one_host and FAULTS[fault].network)
            or any((c.phase, c.fault) == (phase, fault) for c in cells)
        ):
            continue
        cell = measure(phase, fault, data, work)
        print(cell, flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(asdict(cell)) + "\n")
        write_page(sorted([*cells, cell], key=lambda c: ([*PHASES].index(c.phase), [*FAULTS].index(c.fault))))


if __name__ == "__main__":
    main()
