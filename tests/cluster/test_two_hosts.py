"""Runs over two hosts with networks of their own give the results of one process."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import HALF, TWO, arguments, files, losses, trace_options, write_traces
from conftest import config_copy, must, record, run_script
from hosts import Host, four_hosts, launched, outputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four() -> Iterator[dict[str, Host]]:
    with four_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def one_process(once, tiny_data) -> Path:
    return once("cluster_one", lambda out: must(run_script(*arguments(tiny_data, out / "run")))) / "run"


def test_ddp_over_two_hosts_has_the_losses_of_one_process(four, one_process, tiny_data, tmp_path):
    out = tmp_path / "run"
    started = launched(four, TWO, arguments(tiny_data, out, **HALF))
    printed = outputs(started)
    assert [process.returncode for process in started] == [0, 0], printed
    assert losses(out) == pytest.approx(losses(one_process), rel=1e-6)
    assert record(out)["accelerate"]["num_processes"] == 2
    assert all(not host.pids() for host in four.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_sharded_training_over_two_hosts(four, one_process, tiny_data, tmp_path, name):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("DeepSpeed compiles its CPU communication, and there is no C++ compiler")
    toggles = {"gradient_checkpointing": False, "attn_implementation": "varlen_sdpa"}
    config = config_copy(tmp_path, name, toggles, use_cpu=True, mixed_precision="no")
    started = launched(four, config, arguments(tiny_data, tmp_path / "run", **HALF))
    printed = outputs(started)
    assert [process.returncode for process in started] == [0, 0], printed
    assert record(tmp_path / "run")["result"]["effective"]["sharding"] == name
    assert losses(tmp_path / "run") == pytest.approx(losses(one_process), rel=1e-6)


@pytest.mark.exhaustive
def test_data_prep_on_two_hosts_with_one_directory_writes_the_bytes_of_one_process(four, once, tmp_path):
    traces = once("cluster_traces", write_traces)
    command = [sys.executable, "data_prep/filter_traces.py", *trace_options(traces)]
    two = [*command, "--tasks", 4, "--out", tmp_path / "two/out"]
    shares = [four[f"trainer{k + 1}"].start(*two, "--share", f"{k}/2") for k in (0, 1)]
    printed = outputs(shares)
    assert [share.returncode for share in shares] == [0, 0], printed
    assert not (tmp_path / "two/out").exists()
    done = four["trainer1"].run(*two)
    assert done.returncode == 0, done.stdout
    must(run_script(*command[1:], "--processes", 1, "--out", tmp_path / "one/out"))
    assert len(files(tmp_path / "one/out")) >= 3
    assert files(tmp_path / "two/out") == files(tmp_path / "one/out")


def test_hosts_are_gone_with_their_processes_also_after_an_error():
    with pytest.raises(KeyError), four_hosts() as made:
        sleeping = made["client"].start("sleep", 1000)
        raise KeyError
    assert sleeping.wait(10) != 0
    assert not (Path("/run/netns") / made["client"].namespace).exists()
    assert not made["client"].files.exists()
