"""What runs: unfinished runs with the place of their processes and their last step, and the servers of this machine."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from posttrain import lineage
from posttrain.console import clock, plural
from posttrain.digests import DamageError
from posttrain.locks import LOCK_FILE

SERVER = "vllm.entrypoints.openai.api_server"


def runs(directory: Path) -> Iterator[str]:
    """A line for every run below a directory that was begun and is not finished."""
    for path in sorted(directory.rglob(lineage.RUN_FILE)):
        try:
            record = lineage.read_record(path.parent)
        except DamageError as error:
            yield str(error)
            continue
        if record and not record["finished"]:
            yield f"{path.parent}: {progress(path.parent, record)}; {place(path.parent)}"


def progress(run: Path, record: dict[str, Any]) -> str:
    """`sft, step 120 of 400, 0:03 ago`: the last step that was logged, and when."""
    arguments, metrics = record.get("arguments") or {}, run / lineage.METRICS_FILE
    trainer, last = arguments.get("trainer", "run"), last_step(metrics)
    if last is None:
        return f"{trainer}, no step yet"
    steps = arguments.get("max_steps", -1)
    of, ago = f" of {steps}" if steps > 0 else "", clock(time.time() - metrics.stat().st_mtime)
    return f"{trainer}, step {last}{of}, {ago} ago"


def last_step(metrics: Path) -> int | None:
    """The step of the last whole line of a metrics.jsonl that another process may be writing."""
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.is_file() else []
    return json.loads(lines[-1])["step"] if lines else None


def place(run: Path) -> str:
    """Machines and port of a run, or that its process is gone where that can be seen from here."""
    try:
        where = json.loads((run / LOCK_FILE).read_text())
        hosts, pid, port = where["hosts"], where["pid"], where["meeting"]
    except (OSError, ValueError, KeyError, TypeError):
        return "not running"
    if hosts[0] == socket.gethostname() and not psutil.pid_exists(pid):
        return f"not running any more (it was process {pid} here)"
    met = f", met at {port}" if port else ""
    return f"{plural(len(hosts), 'process')} on {', '.join(dict.fromkeys(hosts))}{met}, the first is process {pid}"


def servers() -> Iterator[str]:
    """A line for every vLLM server of this machine."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if SERVER in words:
            host, port, model = (words[words.index(flag) + 1] for flag in ("--host", "--port", "--model"))
            access = "with a token" if "--middleware" in words else "without a token"
            yield f"http://{host}:{port}: vLLM serves {model} {access}, process {process.pid}"
