"""What `make status` says of runs: unfinished ones alone, where they are, how far, and whether they are still there."""

import os
import socket

from posttrain import lineage, locks
from posttrain.pipelines.status import runs, servers


def begun(out, *steps):
    out.mkdir(parents=True)
    lineage.start_record(out, {}, {"arguments": {"trainer": "sft", "max_steps": 20}})
    (out / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps) + '{"step": 9')


def test_a_run_is_told_with_its_machines_port_and_last_step(tmp_path):
    out = tmp_path / "a/run"
    begun(out, 6, 7)
    (line,) = runs(tmp_path)
    assert line == f"{out}: sft, step 7 of 20, 0:00 ago; not running"
    with locks.locked(out):
        locks.describe(out, {"hosts": ["node1", "node1", "node2"], "pid": 77, "meeting": "10.0.0.1:29500"})
        (line,) = runs(tmp_path)
    assert line.endswith("3 processes on node1, node2, met at 10.0.0.1:29500, the first is process 77")


def test_a_process_that_is_gone_is_told_and_a_finished_run_is_not(tmp_path):
    begun(tmp_path / "run")
    gone = {"hosts": [socket.gethostname()], "pid": 2**22 + 1, "meeting": None}
    with locks.locked(tmp_path / "run"):
        locks.describe(tmp_path / "run", gone)
        (line,) = runs(tmp_path)
        assert "no step yet; not running any more" in line
        locks.describe(tmp_path / "run", gone | {"pid": os.getpid()})
        (line,) = runs(tmp_path)
        assert line.endswith(f"1 process on {socket.gethostname()}, the first is process {os.getpid()}")
    record = lineage.read_record(tmp_path / "run")
    lineage.write_closed(tmp_path / "run", lineage.closed(tmp_path / "run", record, {}))
    assert list(runs(tmp_path)) == []


def test_servers_of_this_machine_are_looked_for():
    assert all("vLLM serves" in line for line in servers())
