"""Children end with their parent whatever ends it, and a signal ends a command with one line and its exit code."""

import contextlib
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, STARTED_WITH

from posttrain.processes import IN_FORCE

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
DEAF = "[signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]"  # as a server's worker may be to all but SIGKILL


def tree(child: str = "pass", then: str = "time.sleep(600)") -> str:
    """A command with a child in a session of its own, which does `child` first; the command prints its pid."""
    code = f"import signal, time; {child}; print(flush=True); time.sleep(600)"
    return f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {code!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
{then}
"""


PARENT = """
import sys
from posttrain import processes
from posttrain.errors import run_script

def main():
    with processes.running([sys.executable, "-c", {command!r}]) as process:
        process.wait()

run_script(main)
"""


def start_python(code: str, **options) -> subprocess.Popen[str]:
    environment = {**STARTED_WITH, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(processes: list[psutil.Process], seconds: float = 5.0) -> list[psutil.Process]:
    """Those of the processes that are still there after so many seconds; then they are killed."""
    deadline = time.monotonic() + seconds
    while (alive := [p for p in processes if is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return alive


@pytest.mark.parametrize(
    ("signum", "child"), [*((signum, "pass") for signum in ENDING), (signal.SIGKILL, "pass"), (signal.SIGKILL, DEAF)]
)
def test_no_descendant_survives_the_end_of_its_parent(signum, child):
    parent = start_python(PARENT.format(command=tree(child)))
    grandchild = psutil.Process(int(parent.stdout.readline()))
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) == 3 and grandchild in descendants, "a keeper, a command, and its child"
    began = time.monotonic()
    parent.send_signal(signum)
    code = parent.wait()
    assert gone_within(descendants, 5 - (time.monotonic() - began)) == []
    error = parent.stderr.read()
    if signum != signal.SIGKILL:
        assert (code, error) == (128 + signum, f"interrupted by {signum.name}: what is complete is kept\n")


def test_orphans_of_a_command_that_ends_by_itself_are_ended():
    parent = start_python(PARENT.format(command=tree(then="sys.exit(3)")))
    grandchild = psutil.Process(int(parent.stdout.readline()))
    assert parent.wait() == 0
    assert gone_within([grandchild], 1) == []


def test_a_killed_keeper_takes_its_command_along():
    parent = start_python(PARENT.format(command="import time; print(flush=True); time.sleep(600)"))
    parent.stdout.readline()
    keeper, command = psutil.Process(parent.pid).children(recursive=True)
    keeper.kill()
    assert gone_within([command], 2) == []
    parent.wait()


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_that_of_the_command(ends, code):
    from posttrain import processes

    process = processes.start([sys.executable, "-c", f"import os, sys; {ends}"])
    assert process.wait(timeout=20) == code


@pytest.mark.parametrize(
    "stuck",
    [
        "threading.Thread(target=time.sleep, args=(600,)).start()",  # which the interpreter waits for at its end
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**8)",  # C code that lets no handler of Python run
        "[time.sleep(600) for _ in iter(catch, None)]",  # a library that swallows whatever is raised
    ],
    ids=["thread", "c_code", "swallowed"],
)
def test_a_command_that_cannot_unwind_ends_all_the_same(stuck):
    code = f"""
    import hashlib, threading, time
    from posttrain import processes
    from posttrain.errors import run_script
    processes.END_SECONDS = 0.5

    def catch():
        try:
            print(flush=True)
            time.sleep(600)
        except BaseException:
            pass

    def main():
        threading.Timer(0.2, print, kwargs=dict(flush=True)).start()
        {stuck}
        time.sleep(600)

    run_script(main)
    """
    process = start_python(code)
    process.stdout.readline()
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert time.monotonic() - began < 3
    assert process.stderr.read().splitlines()[-1] == "interrupted by SIGTERM: what is complete is kept"


def test_a_second_signal_ends_at_once():
    code = """
    import time
    from posttrain.errors import run_script

    def main():
        print(flush=True)
        try:
            time.sleep(600)
        finally:
            print(flush=True)
            time.sleep(600)

    run_script(main)
    """
    process = start_python(code)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert time.monotonic() - began < 2


def test_a_signal_that_nohup_ignores_stays_ignored():
    code = """
    import time
    from posttrain.errors import run_script
    run_script(lambda: (print(flush=True), time.sleep(1), print("whole", flush=True)))
    """
    process = start_python(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=20) == 0
    assert process.stdout.read() == "whole\n"


def test_a_fork_hears_signals_as_before(tmp_path: Path):
    """A data loader's worker, ended by SIGTERM, must not end its parent."""
    code = f"""
    import multiprocessing, time
    from posttrain.errors import run_script

    def main():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        worker.start()
        time.sleep(0.3)
        worker.terminate()
        worker.join()
        time.sleep(1)
        open({str(tmp_path / "code")!r}, "w").write(str(worker.exitcode))

    run_script(main)
    """
    process = start_python(code)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "code").read_text() == "-15"


FORKS = {
    "a manager": """
        with processes.forks_end_with_this():
            manager = multiprocess.Manager()
        print(manager._process.pid, flush=True)
    """,
    "idle workers of a server of forks": """
        multiprocess.set_forkserver_preload(["posttrain.processes"])
        pool = multiprocess.get_context("forkserver").Pool(2)
        print(*(worker.pid for worker in pool._pool), flush=True)
    """,
}


@pytest.mark.parametrize("forks", FORKS)
def test_forks_of_a_library_end_with_this_process(forks):
    """They wait for their parent for ever, and keep its output open, so that a launcher would wait with them."""
    pytest.importorskip("multiprocess")
    made = textwrap.dedent(FORKS[forks])
    code = f"import multiprocess, os, time\nfrom posttrain import processes\n{made}\ntime.sleep(600)"
    process = start_python(code)
    children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert children
    process.kill()
    assert gone_within(children) == []
    assert process.communicate(timeout=20)[0] == ""


def test_a_fork_of_a_fork_is_its_own_parents_matter():
    code = """
    import os
    from posttrain import processes
    with processes.forks_end_with_this():
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            grandchild = os.fork()
            os._exit(7 if grandchild and os.waitpid(grandchild, 0)[1] == 0 else 0)
    """
    assert start_python(code).communicate(timeout=20)[0] == "7\n"


WORKER = """
import os, sys, time
from posttrain.errors import PosttrainError, run_script

def main():
    if sys.argv[1] == "wait":
        print(os.getpid(), flush=True)
        time.sleep(600)
    raise {"wrong": PosttrainError("x.yaml: seed: expected a number"), "fault": KeyError("seed")}[sys.argv[1]]

run_script(main)
"""
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "one process": ["accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"],
    "two processes": [
        "accelerate.commands.launch", "--main_process_port", "0", "--config_file", "accelerate_configs/cpu_2proc.yaml",
    ],
}  # fmt: skip


def launch_worker(launcher: str, task: str, tmp_path: Path) -> subprocess.Popen[str]:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(tmp_path / "worker.py"), task]
    environment = {**STARTED_WITH, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, **pipes)


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    workers = []
    for process in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.Error):  # a helper of the launcher that has ended
            workers += [process] if "worker.py" in " ".join(process.cmdline()) else []
    return workers


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_end_with_their_launcher(launcher, tmp_path):
    process = launch_worker(launcher, "wait", tmp_path)
    count = 1 if launcher == "one process" else 2
    for _ in range(count):  # each says that it is there
        process.stdout.readline()
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers_of(process)) == count
    process.kill()
    process.wait()
    assert gone_within(workers) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_that_have_just_begun_end_with_their_launcher(launcher, tmp_path):
    """Its end is no news to a worker that has not yet asked for it: another process has adopted the worker by then."""
    process = launch_worker(launcher, "wait", tmp_path)
    count = 1 if launcher == "one process" else 2
    while len(workers := workers_of(process)) < count:
        assert process.poll() is None
    for worker in workers:
        worker.suspend()
    process.kill()
    process.wait()
    for worker in workers:
        worker.resume()
    assert gone_within(workers) == []


@pytest.mark.slow
@pytest.mark.parametrize(("mine", "lives"), [({}, False), ({IN_FORCE: "cpu.yaml"}, True)])
def test_an_orphan_lives_whose_environment_no_launcher_made(mine, lives, tmp_path):
    """As `!nohup python src/sft.py … &` in a notebook that has trained before, whose shell is gone at once."""
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**STARTED_WITH, "PYTHONPATH": str(REPOSITORY / "src"), "ACCELERATE_DYNAMO_MODE": "default", **mine}
    shell = f"nohup {sys.executable} {tmp_path}/worker.py wait > {tmp_path}/said 2> /dev/null & echo $!"
    pid = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, text=True, check=True).stdout
    orphan = psutil.Process(int(pid))
    while not (said := (tmp_path / "said").read_text()) and orphan.is_running():
        time.sleep(0.02)
    assert bool(said) == lives
    assert gone_within([orphan], 0.0 if lives else 5.0) == [orphan] * lives


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "two processes"])
@pytest.mark.parametrize(
    ("task", "said"),
    [("wrong", "x.yaml: seed: expected a number"), ("fault", "KeyError: 'seed'")],  # of whichever worker fails first
)
def test_the_last_thing_on_the_screen_is_what_was_wrong(launcher, task, said, tmp_path):
    _, shown = launch_worker(launcher, task, tmp_path).communicate(timeout=120)
    last = [line for line in shown.splitlines() if not line.startswith(("=", "-"))][-1]
    assert said in last, shown[-2000:]
