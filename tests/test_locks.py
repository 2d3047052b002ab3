"""A lock lives as long as its process, and names of temporary files are of one writer each."""

import os
import signal
import subprocess
import sys

import pytest

from posttrain import atomic
from posttrain.locks import LockError, lock

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


def test_writers_of_one_file_never_share_a_temporary_name(tmp_path):
    with atomic.writing(tmp_path / "a") as one, atomic.writing(tmp_path / "a") as other:
        other.write(b"other")
        one.write(b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
