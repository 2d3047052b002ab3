"""data_prep/filter_traces.py: what is kept is sound, what is dropped has a reason, the bytes follow from the rows."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, run_script

SCRIPT = "data_prep/filter_traces.py"
TOKENIZER = REPOSITORY / "assets/tiny_init"
CHAT = ("--tokenizer", TOKENIZER, "--eos-token", "<|im_end|>", "--decontaminate", "none")
QWEN = ("--eos-token", "<|im_end|>", "--decontaminate", "none")


def solved(number: int) -> dict:
    """A sound row; every number gives another one."""
    words = " ".join(hashlib.sha256(f"{number}.{i}".encode()).hexdigest()[:6] for i in range(6))
    return {
        "question": f"{words}: {number} + 1 = ?",
        "response": f"{words} so \\boxed{{{number + 1}}}",
        "gold": str(number + 1),
    }


def write_lines(path: Path, rows: list) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def prepare(out: Path, *arguments: object, **options) -> dict:
    done = run_script(SCRIPT, *arguments, "--out", out, **options)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "manifest.json").read_text())


def digests(out: Path) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.parquet"))}


REASON_ROWS = {
    "unreadable": [b"{not json\n", b"[1]\n", b'{"question": "\xff\xfe", "response": "x"}\n', {"question": "only"}],
    "invalid_text": [solved(900) | {"response": "\x00 \\boxed{901}"}, solved(901) | {"question": "\ud800 1?"}],
    "too_long": [solved(902) | {"response": " ".join(map(str, range(900))) + "\\boxed{903}"}],
    "too_short": [solved(903) | {"response": ""}],
    "unfinished": [solved(904) | {"response": "<think> hm \\boxed{905}"}],
    "bad_gold": [solved(905) | {"gold": None}, solved(906) | {"gold": [907]}, solved(907) | {"gold": " "}],
    "no_answer": [solved(908) | {"response": "I give up"}],
    "wrong_answer": [solved(909) | {"response": "it is \\boxed{4}"}],
    "loop": [solved(910) | {"response": "1+1=2 and 2+2=4 and 3+3=6; " * 14 + "\\boxed{911}"}],
    "untrainable": [solved(911) | {"response": "so <|im_end|> then \\boxed{912}"}],
    "duplicate": [solved(1), solved(2)],
    "near_duplicate": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Sixty sound rows and a few for every reason."""
    rows = [solved(n) for n in range(60)] + [row for rows in REASON_ROWS.values() for row in rows]
    return write_lines(tmp_path_factory.mktemp("mixed") / "mixed.jsonl", rows)


@pytest.mark.slow
def test_every_reason_is_counted_and_the_dropped_rows_are_kept(mixed, tmp_path):
    manifest = prepare(tmp_path / "out", mixed, *CHAT, "--max-tokens", 512, "--keep-dropped", "--validation", 5)
    expected = {reason: len(rows) for reason, rows in REASON_ROWS.items() if rows}
    assert manifest["counts"]["dropped"] == expected
    assert manifest["counts"]["kept"] == {"train": 55, "validation": 5}
    assert manifest["counts"]["read"] == 60 + sum(expected.values())
    dropped = pq.read_table(tmp_path / "out/dropped.parquet").to_pylist()
    assert {r: sum(row["reason"] == r for row in dropped) for r in expected} == expected
    assert all(row["id"] for row in dropped)


@pytest.fixture(scope="module")
def reference(mixed, tmp_path_factory) -> dict:
    """Digests of the mixed rows' result by one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare(out, mixed, *CHAT, "--max-tokens", 512, "--keep-dropped", "--processes", 1, "--source", "s", "--n", 40)
    return digests(out)


@pytest.mark.slow
def test_order_processes_shards_and_an_interruption_do_not_change_a_byte(mixed, reference, tmp_path):
    options = (*CHAT, "--max-tokens", 512, "--keep-dropped", "--source", "s", "--n", 40)
    lines = mixed.read_bytes().splitlines(keepends=True)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(4):
        write_lines(shards / f"{number}.jsonl", lines[::-1][number::4])
    prepare(tmp_path / "shards_out", shards, *options, "--processes", 2)
    assert digests(tmp_path / "shards_out") == reference
    # Killed after some of the parts: what is there is used, the rest is made.
    parts = sorted((tmp_path / ".filter_traces").rglob("*.parquet"))
    assert len(parts) == 4
    stamps = {path: path.stat().st_mtime_ns for path in parts[:2]}
    for path in parts[2:]:
        path.unlink()
    parts[3].with_name(f".{parts[3].name}.77.tmp").write_bytes(b"half")
    prepare(tmp_path / "shards_out", shards, *options)
    assert digests(tmp_path / "shards_out") == reference
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
