"""A lock lives as long as its process, and names of temporary files are of one writer each."""

import os
import signal
import subprocess
import sys

import pytest

from posttrain import atomic
from posttrain.locks import LockError, lock, locked, locked_file

HOLD = "import sys, time; from pathlib import Path; from posttrain.locks import lock; lock(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"  # noqa: E501


def test_a_directory_has_one_writer_until_that_one_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(LockError, match="another process is still writing there"):
            lock(tmp_path)
        lock(tmp_path, ".other.lock")  # of other files there
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    lock(tmp_path)
    lock(tmp_path)  # its own
    with locked_file(tmp_path / "a"), pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], check=True, capture_output=True)


def test_a_block_holds_a_directory_and_lets_it_go(tmp_path):
    take = [sys.executable, "-c", HOLD.replace("time.sleep(60)", "0"), str(tmp_path)]
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert "still writing there" in subprocess.run(take, capture_output=True, text=True).stderr
    assert subprocess.run(take, capture_output=True).returncode == 0


def test_writers_of_one_file_never_share_a_temporary_name(tmp_path):
    with atomic.writing(tmp_path / "a") as one, atomic.writing(tmp_path / "a") as other:
        other.write(b"other")
        one.write(b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
