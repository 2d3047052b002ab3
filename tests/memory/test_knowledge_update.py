"""Rows of a knowledge bank replaced, added and removed, and the scripts around a memory."""

import json

import pytest
import torch
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from posttrain.memory.bank.cache import (
    BankError,
    BankShape,
    Fact,
    bank_digest,
    build_bank,
    load_bank,
    read_metadata,
    write_bank,
)
from posttrain.memory.bank.update import apply_changes, as_change, read_mappings, write_changed
from posttrain.memory.files import check_bank_of
from posttrain.memory.layer import MemoryFault

SHAPE = BankShape(knowledge_num=9, knowledge_length=4, vocab_size=50, pad_id=0)
START = [Fact(f"{'a' * (i + 1)} b", uuid=f"u{i}", object="b") for i in range(6)]


def encode(sentences: list[str]) -> list[list[int]]:
    return [[len(word) for word in sentence.split()] for sentence in sentences]


def changed(*records: dict) -> tuple[torch.Tensor, list[dict]]:
    bank, mappings, _ = build_bank(START, encode, SHAPE)
    changes = [as_change(record, f"change {i}") for i, record in enumerate(records, start=1)]
    return apply_changes(bank, mappings, changes, encode, SHAPE)


def test_rows_are_replaced_removed_and_added():
    bank, mappings = changed(
        {"op": "replace", "uuid": "u1", "sentence": "aa ccc", "object": "ccc"},
        {"op": "remove", "database_index": 0},
        {"op": "add", "uuid": "new", "sentence": "x"},
        {"op": "add", "sentence": "yy yy", "database_index": 8},
    )
    assert bank[:3].tolist() == [[1, 0, 0, 0], [2, 3, 0, 0], [3, 1, 0, 0]]
    assert bank[8].tolist() == [2, 2, 0, 0]
    assert [entry["database_index"] for entry in mappings] == [0, 1, 2, 3, 4, 5, 8]
    assert [entry["uuid"] for entry in mappings] == ["new", "u1", "u2", "u3", "u4", "u5", ""]
    assert mappings[1]["object"] == "ccc"
    assert build_bank(START, encode, SHAPE)[0][1].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize(
    "record",
    [
        {"op": "replace", "uuid": "nobody", "sentence": "x"},
        {"op": "replace", "uuid": "u1", "database_index": 2, "sentence": "x"},
        {"op": "replace", "uuid": "u1", "sentence": "one two three four five"},
        {"op": "replace", "uuid": "u1"},
        {"op": "replace", "sentence": "x"},
        {"op": "remove", "database_index": 7},
        {"op": "remove"},
        {"op": "add", "uuid": "u1", "sentence": "x"},
        {"op": "add", "database_index": 2, "sentence": "x"},
        {"op": "add", "database_index": 9, "sentence": "x"},
        {"op": "add", "database_index": "2", "sentence": "x"},
        {"op": "add"},
        {"op": "drop", "uuid": "u1"},
        {},
    ],
)
def test_a_change_that_cannot_be_made_is_refused(record):
    with pytest.raises(BankError, match="change 1"):
        changed(record)


def test_a_full_bank_takes_no_more():
    with pytest.raises(BankError, match=r"change 4.*taken"):
        changed(*({"op": "add", "sentence": "x"} for _ in range(4)))


UUIDS = st.sampled_from([f"u{i}" for i in range(8)])
RECORDS = st.fixed_dictionaries(
    {"op": st.sampled_from(["replace", "add", "remove"]), "uuid": UUIDS, "sentence": st.just("x")}
)


@given(st.lists(RECORDS, max_size=12))
def test_bank_and_mapping_say_the_same_after_any_changes(records):
    try:
        bank, mappings = changed(*records)
    except BankError:
        return
    filled = {row for row in range(9) if bank[row].any()}
    assert filled == {entry["database_index"] for entry in mappings}
    uuids = [entry["uuid"] for entry in mappings]
    assert len(uuids) == len(set(uuids))
    for entry in mappings:
        (ids,) = encode([entry["sentence"]])
        assert bank[entry["database_index"]].tolist() == ids + [0] * (4 - len(ids))


def test_a_memory_accepts_what_its_bank_was_changed_into(tmp_path):
    bank, mappings, _ = build_bank(START, encode, SHAPE)
    write_bank(tmp_path / "a.pt", bank, mappings, {"source_file": "s"})
    trained = {"bank": {"path": "a.pt", "digest": bank_digest(bank)}}
    made_from, name = bank, "a.pt"
    for step in ("b", "c"):
        change = as_change({"op": "replace", "uuid": "u0", "sentence": step * 3}, "c")
        new, entries = apply_changes(made_from, read_mappings(tmp_path / name), [change], encode, SHAPE)
        write_changed(tmp_path / f"{step}.pt", new, entries, made_from, read_metadata(tmp_path / name))
        made_from, name = load_bank(tmp_path / f"{step}.pt", SHAPE), f"{step}.pt"
        check_bank_of(trained, made_from, tmp_path / name)
    assert read_metadata(tmp_path / "c.pt")["source_file"] == "s"
    write_bank(tmp_path / "other.pt", made_from, mappings, {})
    with pytest.raises(MemoryFault, match="digest"):
        check_bank_of(trained, made_from, tmp_path / "other.pt")


@pytest.mark.slow
def test_the_scripts_change_a_bank_and_show_a_batch(tmp_path):
    world = tmp_path / "world"
    assert run_script("data_prep/tiny_facts.py", "--names", 2, "--out", world).returncode == 0
    bank = torch.load(world / "bank.pt", weights_only=True)
    (tmp_path / "c.jsonl").write_text(json.dumps({"op": "remove", "database_index": 3}))
    arguments = ["--cache", world / "bank.pt", "--tokenizer", world / "base", "--changes", tmp_path / "c.jsonl"]
    done = run_script("data_prep/knowledge_update.py", *arguments, "--out", tmp_path / "new.pt", fresh=True)
    assert done.returncode == 0, done.stderr
    assert "1 changes, 1 rows differ, 15 facts" in done.stdout
    assert not torch.equal(torch.load(tmp_path / "new.pt", weights_only=True), bank)
    assert torch.equal(torch.load(world / "bank.pt", weights_only=True), bank)
    refused = run_script("data_prep/knowledge_update.py", *arguments, "--out", world / "bank.pt")
    assert refused.returncode == 2
    check = ["--qwen3-model-path", world / "base", "--prompt", "question_only", "--data-path"]
    shown = run_script("data_prep/check_sft.py", *check, world / "train.json", fresh=True)
    assert shown.returncode == 0, shown.stderr
    assert "input_ids: shape [2, 7]" in shown.stdout
    assert run_script("data_prep/check_sft.py", *check, tmp_path / "none.json").returncode == 2
