"""Scripts that are forked behave as scripts that an interpreter starts."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import kill, run_script, start
from forked import FORKS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FORKS, reason="scripts are forked on Linux without a GPU alone")]
ENDINGS = [
    "pass", "exit(3)", "exit('words')", "1 / 0", "raise KeyboardInterrupt",
    "import os; os.kill(os.getpid(), 9)", "import os; os.abort()", "import os; os._exit(7)",
]  # fmt: skip
STATE = """
import __main__, atexit, json, os, signal, sys, threading
streams = (sys.stdin, sys.stdout, sys.stderr)
here = {
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "file": __file__, "name": __name__,
    "main": hasattr(__main__, "streams"), "environment": dict(os.environ), "stdin": sys.stdin.read(),
    "parent": os.getppid(), "group": os.getpgrp(), "files": len(os.listdir("/proc/self/fd")),
    "streams": [(s.encoding, s.errors, s.line_buffering, s.isatty()) for s in streams],
    "threads": threading.active_count(), "signals": [str(signal.getsignal(n)) for n in range(1, 32)],
}
atexit.register(print, "the end")
print(json.dumps(here))
"""
POOLS = """
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(double, [1, 2]))
"""


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ends_as_a_new_interpreter_does(tmp_path, ending):
    path = script(tmp_path, f"print('out', flush=True)\n{ending}")
    forked, fresh = (run_script(path, fresh=fresh) for fresh in (False, True))
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_it_sees_what_a_new_interpreter_sees(tmp_path):
    path = script(tmp_path, STATE)
    forked, fresh = (run_script(path, "a", "--b", 1, text="typed\n", fresh=fresh) for fresh in (False, True))
    assert forked.stdout == fresh.stdout and "the end" in fresh.stdout
    assert f'"parent": {os.getpid()}' in forked.stdout


def test_it_is_killed_with_its_children(tmp_path):
    path = script(tmp_path, "import subprocess, time\nsubprocess.Popen(['sleep', '99'])\ntime.sleep(99)")
    process = start([path], config=None)
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
    kill(process)
    assert process.returncode == -signal.SIGKILL
    children[0].wait(10)  # or it is still running


def test_a_pool_of_processes_works_in_it(tmp_path):
    """As in the verifier and filter_traces."""
    done = run_script(script(tmp_path, POOLS))
    assert done.stdout == "[2, 4]\n" * 3, done.stderr


def test_time_that_runs_out_ends_it(tmp_path):
    before = psutil.Process().children(recursive=True)
    with pytest.raises(subprocess.TimeoutExpired):
        run_script(script(tmp_path, "import time; time.sleep(99)"), timeout=0.5)
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_two_scripts_draw_different_numbers(tmp_path):
    path = script(tmp_path, "import random, numpy, uuid\nprint(random.random(), numpy.random.random(), uuid.uuid4())")
    first, second = (run_script(path).stdout.split() for _ in range(2))
    assert len(first) == 3 and not set(first) & set(second)
