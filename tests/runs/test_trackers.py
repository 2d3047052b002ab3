"""Every tracker, with its real package and without a login: what it wrote is what metrics.jsonl says."""

import importlib.util
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, must, run_script

from posttrain.training.callbacks import swanlab_login

Losses = dict[int, float]
PACKAGES = ("tensorboard", "wandb", "swanlab", "trackio")


def tensorboard_losses(out: Path) -> Losses:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (out / "tensorboard").rglob("events.*")
    return {event.step: event.value for event in EventAccumulator(str(events)).Reload().Scalars("train/loss")}


def wandb_losses(out: Path) -> Losses:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    lines = []
    for data in leveldb_log(file.read_bytes()):
        items = Record.FromString(data).history.item
        lines.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return {line["train/global_step"]: line["train/loss"] for line in lines if "train/loss" in line}


def leveldb_log(data: bytes) -> list[bytes]:
    """Records of a .wandb file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes of wandb's own."""
    records, position = [b""], 7
    while position + 7 <= len(data):
        left = -position % 32768
        if 0 < left < 7:  # too short for another header: filled up
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])  # after the checksum
        records[-1] += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            records.append(b"")
    return records[:-1]


def swanlab_losses(out: Path) -> Losses:
    from swanlab.data.porter.datastore import DataStore

    (file,) = (out / "swanlab").glob("run-*/backup.swanlab")
    store = DataStore()
    store.open_for_scan(str(file))
    records = [record["data"] for line in store if (record := json.loads(line))["model_type"] == "Scalar"]
    return {record["step"]: record["metric"]["data"] for record in records if record["key"] == "train/loss"}


def trackio_losses(out: Path) -> Losses:
    import sqlite3

    (file,) = (out / "trackio").glob("*.db")
    lines = [json.loads(text) for (text,) in sqlite3.connect(file).execute("SELECT metrics FROM metrics")]
    return {line["train/global_step"]: line["train/loss"] for line in lines if "train/loss" in line}


READERS: dict[str, Callable[[Path], Losses]] = {
    "tensorboard": tensorboard_losses, "wandb": wandb_losses, "swanlab": swanlab_losses, "trackio": trackio_losses,
}  # fmt: skip


@pytest.fixture(scope="session")
def tracked_run(once, tiny_data) -> Path:
    """One run that reports to every tracker that is installed."""
    installed = [name for name in PACKAGES if importlib.util.find_spec(name)]
    command = [
        "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name", tiny_data / "tiny_math", "--max_steps", 4,
        "--logging_steps", 1, "--eval_strategy", "no", "--sample_generations", 0,
        "--report_to", f"[{', '.join(installed)}]", "--output_dir",
    ]  # fmt: skip
    return once("tracked", lambda out: must(run_script(*command, out / "run"))) / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_has_the_losses_of_the_run(tracked_run, name):
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed: pip install 'posttrain[trackers]'")
    lines = [json.loads(line) for line in (tracked_run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert set(logged) == {1, 2, 3, 4}
    assert READERS[name](tracked_run) == pytest.approx(logged, rel=1e-6)
    assert not [path for path in os.listdir(REPOSITORY) if path in ("wandb", "swanlog", "runs", "trackio")]


def test_a_swanlab_login_is_found_where_swanlab_looks(monkeypatch, tmp_path):
    for name in ("SWANLAB_API_KEY", "SWANLAB_SAVE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path))
    assert not swanlab_login()
    (tmp_path / ".netrc").write_text("machine https://api.swanlab.cn login user password secret\n")
    assert swanlab_login()
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("SWANLAB_API_KEY", "x")
    assert swanlab_login()
