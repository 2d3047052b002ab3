"""The same rows as JSON lines, JSON and CSV become the same dataset, to the byte."""

import csv
import json

import pytest
from conftest import run_script
from traces import CHAT, digests, solved


@pytest.mark.slow
def test_every_format_becomes_the_same_dataset(tmp_path):
    rows = [solved(number) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}, indent=1))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    made = {}
    for suffix in ("jsonl", "json", "csv"):
        out = tmp_path / suffix
        command = [
            "data_prep/filter_traces.py",
            tmp_path / f"rows.{suffix}",
            *CHAT,
            "--max-tokens",
            512,
            "--processes",
            1,
        ]
        done = run_script(*command, "--source", "s", "--validation", 5, "--out", out)
        assert done.returncode == 0, done.stderr
        made[suffix] = digests(out)
    assert made["jsonl"] == made["json"] == made["csv"]
    assert len(made["jsonl"]) >= 2  # train and validation
