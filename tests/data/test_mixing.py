"""Mixtures: shares within one row of what was asked, nothing twice, nothing held out, ids that are still right."""

from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import must, run_script
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.manifest import Source, check_dataset, write_dataset, write_manifest
from posttrain.data.mixing import MixError, Part, near_duplicates_across, parse_part, quotas
from posttrain.data.rows import ROW_SCHEMA, chat_row, read_parquet, write_parquet
from posttrain.data.token_files import KEY, read_ids
from posttrain.data.token_files import SCHEMA as IDS_SCHEMA

PARTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def part(share: Fraction | None = None, count: int | None = None) -> Part:
    return Part(Path("d"), share, count)


@given(PARTS, st.integers(1, 5000))
def test_shares_are_within_one_row_of_what_was_asked(weights, total):
    parts = [part(Fraction(weight, sum(weights))) for weight in weights]
    found = quotas(parts, [10**6] * len(parts), total)
    assert sum(found) == total
    assert all(abs(rows - p.share * total) < 1 for p, rows in zip(parts, found, strict=True))


@given(PARTS, st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(1, 30))
def test_counts_are_kept_beside_shares_of_the_whole(weights, counts, rest):
    shares = [Fraction(weight, sum(weights) + rest) for weight in weights]
    parts = [*map(part, shares), *(part(count=count) for count in counts)]
    found = quotas(parts, [10**6] * len(parts), None)
    assert found[len(shares) :] == counts
    assert all(abs(rows - share * sum(found)) < 1 for share, rows in zip(shares, found, strict=False))


@given(PARTS, st.data())
def test_a_mixture_of_shares_is_as_large_as_its_sources_allow(weights, data):
    parts = [part(Fraction(weight, sum(weights))) for weight in weights]
    there = [data.draw(st.integers(50, 500)) for _ in parts]
    found = quotas(parts, there, None)
    total = sum(found)
    assert all(rows <= most for rows, most in zip(found, there, strict=True))
    assert any(p.share * (total + 1) > most for p, most in zip(parts, there, strict=True))


@pytest.mark.parametrize(
    ("texts", "there", "total", "said"),
    [
        (["a:0.5", "b:0.3"], [9, 9], None, "the shares add up to 0.8, expected 1"),
        (["a:0.5", "b:0.5", "c:3"], [9, 9, 9], None, "leaves nothing for the parts given in rows"),
        (["a:0.5", "b:8"], [7, 9], None, "a: 0.5 of 16 rows is 8, and it has 7 to give"),
        (["a:12"], [9], None, "a: asked for are 12, and it has 9"),
        (["a:0.5", "b:8"], [9, 9], 20, "make 16; leave --n out"),
    ],
)
def test_amounts_that_contradict_each_other_are_told(texts, there, total, said):
    with pytest.raises(MixError, match=said):
        quotas([parse_part(text) for text in texts], there, total)


@pytest.mark.parametrize("text", ["a", "a:", ":5", "a:x", "a:0", "a:1.5", "a:-3", "a:0.0", "a:nan"])
def test_what_names_no_amount_is_refused(text):
    with pytest.raises(MixError):
        parse_part(text)


def dataset(out: Path, train: range, validation: range = range(0), source: str = "s") -> Path:
    splits = {"train": train, **({"validation": validation} if validation else {})}
    rows = {
        name: [chat_row(f"What is {n} + 1?", str(n + 1), str(n + 1), source) for n in of] for name, of in splits.items()
    }
    write_dataset(out, rows, Source(source, "MIT"), None, {}, None)
    return out


@pytest.mark.slow
def test_a_mixture_says_where_its_rows_come_from(tmp_path):
    a = dataset(tmp_path / "a", range(100), range(100, 105))
    b = dataset(tmp_path / "b", range(90, 140), source="t")  # 10 rows of a, and all of its held-out questions
    done = must(run_script("data_prep/mix.py", f"{a}:0.75", f"{b}:20", "--out", tmp_path / "m"))
    manifest = check_dataset(tmp_path / "m")
    assert manifest["counts"] == {
        "read": 155,
        "dropped": {"held_out_elsewhere": 5, "duplicate": 10, "not_chosen": 55},
        "kept": {"train": 80, "validation": 5},
    }
    parts = manifest["mixture"]["parts"]
    assert [(p["asked"], p["rows"], p["available"]) for p in parts] == [("0.75", 60, 100), (20, 20, 35)]
    train, held = (read_parquet(tmp_path / f"m/{name}.parquet") for name in ("train", "validation"))
    ids = [row["id"] for row in train]
    assert ids == sorted(set(ids)) and {row["source"] for row in train} == {"s", "t"}
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in held}
    assert "token ids not reused" in done.stdout
    more = must(run_script("data_prep/mix.py", f"{b}:25", f"{a}:0.75", "--out", tmp_path / "more"))  # another order
    assert "near-duplicates across sources" in more.stdout
    larger = {row["id"] for row in read_parquet(tmp_path / "more/train.parquet")}
    assert len({row["id"] for row in train if row["source"] == "t"} - larger) <= 10  # a's duplicates count as b's now
    for wrong in ((f"{a}:0.5", f"{b}:0.2"), (f"{a}:0.5", f"{tmp_path}/c:5"), (f"{a}:5000",)):
        refused = run_script("data_prep/mix.py", *wrong, "--out", tmp_path / "none")
        assert refused.returncode == 2 and "Traceback" not in refused.stderr and not (tmp_path / "none").exists()


def with_ids(out: Path, numbers: range, key: str) -> Path:
    """A dataset whose token ids are its numbers, made under `key`."""
    rows = sorted((chat_row(f"What is {n} + 1?", str(n + 1), str(n + 1), "s") for n in numbers), key=lambda row: row.id)
    write_parquet(out / "train.parquet", rows)
    ids = [{"id": row.id, "input_ids": [7] * (int(row.answer) % 5) + [int(row.answer)], "n_prompt": 1} for row in rows]
    schema = IDS_SCHEMA.with_metadata({KEY: key})
    pq.write_table(pa.Table.from_pylist(ids, schema=schema), out / "train.ids.parquet")
    facts = {"columns": ROW_SCHEMA.names, "seed": None, "tokens": {"tokenizer": "t"}, "decontamination": None}
    counts = {"read": len(rows), "dropped": {}, "kept": {"train": len(rows)}}
    files = [out / "train.parquet", out / "train.ids.parquet"]
    write_manifest(out, files, Source("s", "MIT"), {**facts, "counts": counts})
    return out


@pytest.mark.slow
def test_token_ids_go_on_to_be_used_where_the_key_agrees(tmp_path):
    a, b, other = (
        with_ids(tmp_path / name, numbers, key)
        for name, numbers, key in (("a", range(60), "k"), ("b", range(60, 100), "k"), ("c", range(200, 240), "l"))
    )
    done = must(run_script("data_prep/mix.py", f"{a}:0.5", f"{b}:0.5", "--out", tmp_path / "m"))
    assert "token ids reused" in done.stdout
    assert check_dataset(tmp_path / "m")["ids_key"] == "k"
    rows, ids = read_parquet(tmp_path / "m/train.parquet"), read_ids(tmp_path / "m/train.parquet", "k")
    assert ids is not None and len(rows) == len(ids.row_ids) == 80
    for i, row in enumerate(rows):
        assert ids.row_ids[i] == row["id"]
        assert ids.values[ids.offsets[i] : ids.offsets[i + 1]].tolist()[-1] == int(row["answer"])
    done = must(run_script("data_prep/mix.py", f"{a}:0.5", f"{other}:0.5", "--out", tmp_path / "n"))
    assert "token ids not reused" in done.stdout and not (tmp_path / "n/train.ids.parquet").exists()


def test_near_duplicates_are_counted_across_sources_alone():
    words = [" ".join(f"w{(7 * n + i) % 991}" for i in range(60)) for n in range(6)]
    first = pa.table({"id": ["a", "b", "c"], "text": [words[0], words[1], words[1] + " again"]})
    second = pa.table({"id": ["d", "e"], "text": [words[0] + " more", words[5]]})
    assert near_duplicates_across([first, second], 0.8) == 1
    assert near_duplicates_across([first], 0.8) == 0
