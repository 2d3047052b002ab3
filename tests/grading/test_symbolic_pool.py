"""The processes of the verifier: nothing hangs, none outlives its owner, and a lost one costs no verdict."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from graded import verdict
from hostile import HOSTILE

from posttrain.grading.grader import Grader, Verdict
from posttrain.grading.pool import SymbolicPool, VerifierError
from posttrain.grading.symbolic import warm_up


def test_a_timeout_is_not_remembered():
    """It says how busy the machine was."""
    with Grader(workers=1, deadline_seconds=0.5) as grader:
        assert verdict(grader, r"\sqrt{7}", r"\boxed{9^{9^{9^{9}}}}") is Verdict.TIMEOUT
        assert grader.known == {}


def grade_hostile_answers() -> None:
    """All of them, none correct, in bounded time; the items after them are graded right."""
    with Grader(workers=2) as grader:
        verdict(grader, r"\sqrt{2}", r"\boxed{\sqrt{2}\cdot 1}")  # start a process
        began = time.monotonic()
        grades = grader.grade([r"\sqrt{7}"] * len(HOSTILE), HOSTILE, [False] * len(HOSTILE))
        seconds = time.monotonic() - began
        verdicts = Counter(grade.verdict for grade in grades)
        good = [verdict(grader, f"{n}\\sqrt{{2}}", f"\\boxed{{\\sqrt{{{2 * n * n}}}}}") for n in range(2, 30)]
    assert set(good) == {Verdict.CORRECT}
    assert verdicts[Verdict.CORRECT] == verdicts[Verdict.ERROR] == 0 and verdicts[Verdict.TIMEOUT] < 25
    # Deadline and respawn of each that is killed, and a busy machine; without the pool some never end.
    assert seconds < verdicts[Verdict.TIMEOUT] * (2.0 + 0.6) + 30
    assert not os.path.exists("/tmp/hacked")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["main thread", "thread", "forked process"])
def test_hostile_answers_end_within_the_deadline(where):
    assert len(HOSTILE) >= 78
    if where == "main thread":
        grade_hostile_answers()
    elif where == "thread":
        with ThreadPoolExecutor(1) as thread:
            thread.submit(grade_hostile_answers).result(timeout=300)
    else:
        forked = multiprocessing.get_context("fork").Process(target=grade_hostile_answers)
        forked.start()
        forked.join(timeout=300)
        assert forked.exitcode == 0


def test_a_killed_worker_costs_no_pair():
    pairs = [(f"{n}\\sqrt{{2}}", f"\\sqrt{{{2 * n * n}}}") for n in range(1, 40)]
    outcomes = {}
    with SymbolicPool(workers=1) as pool:
        for index, outcome in pool.compare(pairs):
            outcomes[index] = outcome
            if index == 10:
                os.kill(pool.workers[0].child, signal.SIGKILL)
            if index == 20:
                pool.workers[0].process.kill()
    assert outcomes == dict.fromkeys(range(len(pairs)), True)


RIGHT, FALSE = (r"\sqrt8", r"2\sqrt2"), (r"\sqrt8", r"3\sqrt2")


def test_a_child_that_never_read_its_pair_leaves_no_verdict_to_the_next():
    with SymbolicPool(workers=1, deadline_seconds=2.0) as pool:
        assert dict(pool.compare([RIGHT])) == {0: True}
        os.kill(pool.workers[0].child, signal.SIGSTOP)
        verdicts = dict(pool.compare([RIGHT, FALSE, FALSE, RIGHT]))
        assert verdicts == {0: "timeout", 1: False, 2: False, 3: True}


def test_a_child_killed_while_idle_costs_no_verdict():
    with SymbolicPool(workers=1) as pool:
        dict(pool.compare([RIGHT]))
        for _ in range(3):
            os.kill(pool.workers[0].child, signal.SIGKILL)
            verdicts = dict(pool.compare([RIGHT, FALSE, FALSE, RIGHT, RIGHT]))
            assert verdicts == {0: True, 1: False, 2: False, 3: True, 4: True}


def test_a_worker_gone_while_idle_is_replaced():
    with SymbolicPool(workers=1) as pool:
        assert dict(pool.compare([RIGHT])) == {0: True}
        pool.workers[0].process.kill()
        pool.workers[0].process.wait()
        os.kill(pool.workers[0].child, signal.SIGKILL)
        assert dict(pool.compare([FALSE, RIGHT])) == {0: False, 1: True}


def test_a_child_that_died_before_its_deadline_was_looked_at_is_a_timeout():
    with SymbolicPool(workers=2, deadline_seconds=0.5) as pool:
        dict(pool.compare([RIGHT, FALSE]))
        stopped = pool.workers[1].child
        os.kill(stopped, signal.SIGSTOP)
        verdicts = pool.compare([RIGHT, FALSE])
        first = next(verdicts)
        os.kill(stopped, signal.SIGKILL)
        time.sleep(1)  # its worker has reaped it
        assert dict([first, *verdicts]) == {0: True, 1: "timeout"}


def test_workers_gone_between_two_calls_cost_no_verdict():
    with SymbolicPool(workers=1) as pool:
        dict(pool.compare([RIGHT]))
        os.kill(pool.workers[0].child, signal.SIGSTOP)
        pool.workers[0].process.kill()
        os.kill(pool.workers[0].child, signal.SIGKILL)
        assert dict(pool.compare([RIGHT, FALSE])) == {0: True, 1: False}


def test_a_worker_that_cannot_start_says_so(tmp_path, monkeypatch):
    (tmp_path / "sympy").mkdir()
    (tmp_path / "sympy/__init__.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VerifierError, match="ended before it was ready"):
        dict(SymbolicPool(workers=1).compare([RIGHT]))


def test_workers_end_with_the_pool():
    with SymbolicPool(workers=1) as pool:
        assert dict(pool.compare([(r"\sqrt{4}", r"\sqrt[3]{8}")])) == {0: True}
        child, process = pool.workers[0].child, pool.workers[0].process
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


ENDLESS = (r"\sqrt{7}", "9^{9^{9^{9}}}")


@pytest.mark.parametrize("pairs", [[("x", "x+1")], [("x", "x+1"), ENDLESS]], ids=["idle", "in the middle of a pair"])
def test_workers_end_when_their_owner_is_killed(pairs):
    code = (
        f"import time; from posttrain.grading.pool import SymbolicPool; pool = SymbolicPool(1, deadline_seconds=600);"
        f"outcomes = pool.compare({pairs!r}); next(outcomes); print(pool.workers[0].process.pid, flush=True);"
        f"list(outcomes); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    family = [worker, *worker.children(recursive=True)]
    assert len(family) == 2
    time.sleep(0.2)  # the second pair is on its way
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=3)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_the_verifier_works_in_a_forked_process():
    """As a data loader's or a rollout's worker is one."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_verdict_of_a_root).get(timeout=120) == "correct"


def _verdict_of_a_root() -> str:
    with Grader(workers=1) as grader:
        return verdict(grader, r"\sqrt{8}", r"\boxed{2\sqrt{2}}").value


def test_packages_that_decide_otherwise_are_named():
    assert warm_up() is None
    assert warm_up([("1", "2", True)]) == "'2' for gold '1' is False, expected True"


def test_a_pool_of_such_packages_does_not_start(tmp_path, monkeypatch):
    """Seen through the real process, whose sympy is replaced by one that calls everything equal."""
    (tmp_path / "math_verify.py").write_text(
        "class ExprExtractionConfig: pass\n"
        "class LatexExtractionConfig:\n    def __init__(self, **_): pass\n"
        "def parse(*_, **__): return [1]\n"
        "def verify(*_, **__): return True\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with SymbolicPool(workers=1) as pool, pytest.raises(VerifierError, match="the installed packages decide wrongly"):
        list(pool.compare([("x", "y")]))
