"""A full disk is one line that says where, what is kept and what to do."""

import errno
import subprocess
from pathlib import Path

import pytest

from posttrain import locks
from posttrain.errors import run_script

REMEDY = "No space left on device; what is complete is kept: free space, then the same command goes on\n"


def write_to_a_full_device() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


@pytest.fixture(autouse=True)
def no_locks_of_other_tests(monkeypatch):
    monkeypatch.setattr(locks, "HELD", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_write_that_fails_names_the_directories_that_are_written_to(tmp_path, capsys):
    def main() -> None:
        with locks.locked(tmp_path / "run"), locks.locked(tmp_path / "evals"):
            write_to_a_full_device()

    with pytest.raises(SystemExit) as left:
        run_script(main)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: a file of this command: {REMEDY}"  # the locks are given back by then
    locks.lock(tmp_path / "run")
    with pytest.raises(SystemExit):
        run_script(write_to_a_full_device)
    assert capsys.readouterr().err == f"error: {tmp_path / 'run'}: {REMEDY}"


def test_a_file_that_cannot_be_made_is_named(capsys):
    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "outputs/run/x.json")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == f"error: outputs/run/x.json: {REMEDY}"


def test_of_several_disks_the_full_one_is_named(tmp_path, capsys):
    """A small disk of its own, where the machine allows it."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        locks.lock(tmp_path / "run")
        locks.lock(small / "evals")

        def main() -> None:
            with (small / "rows").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        with pytest.raises(SystemExit):
            run_script(main)
        assert capsys.readouterr().err == f"error: {small / 'evals'}: {REMEDY}"
    finally:
        locks.HELD.clear()
        subprocess.run(["umount", "--lazy", small], check=True)
