"""Multiple-choice questions and the knowledge bank: published bytes, refusals, and the real T-REx triples."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.records import read_json_lines
from posttrain.data.sources import omcq
from posttrain.data.sources.omcq import Triple, conversation, convert, generate
from posttrain.errors import PosttrainError
from posttrain.memory.bank import cache as knowledge
from posttrain.memory.bank.cache import BankError, BankShape, Fact, build_bank, check_bank, load_bank, write_bank

TARGET = {"question": "What is Tamil?", "options": "A:language family,B:river", "correct_answer": "A:language family"}
LINE = (
    '{"conversations":[{"role":"user","content":"What is Tamil?\\nA:language family,B:river\\n请选择正确答案。"},'
    '{"role":"assistant","content":"A:language family"}]}\n'
)
SHAPE = BankShape(knowledge_num=4, knowledge_length=3, vocab_size=50, pad_id=0)


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


def encode(sentences: list[str]) -> list[list[int]]:
    return [[len(word) for word in sentence.split()] for sentence in sentences]


def test_a_conversation_has_the_published_bytes(tmp_path):
    source = write(tmp_path / "in.json", [{"target": [TARGET, {"question": "another target"}]}])
    assert convert(source, tmp_path / "out.jsonl", None) == (1, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == LINE.encode()


@pytest.mark.parametrize(
    "item",
    [{}, [], None, "text", {"target": []}, {"target": "x"}, {"target": [None]}, {"target": [{**TARGET, "options": ""}]},
     {"target": [{**TARGET, "question": 3}]}, {"target": [{"question": "a", "options": "b"}]}],
)  # fmt: skip
def test_an_item_without_all_fields_is_skipped(item):
    assert conversation(item) is None


def test_skipped_items_are_counted_and_max_samples_counts_conversations(tmp_path):
    good, broken = {"target": [TARGET]}, {"target": [{**TARGET, "correct_answer": None}]}
    (tmp_path / "in.json").write_text(json.dumps([{}, good, broken, good, good, {}]))
    assert convert(tmp_path / "in.json", tmp_path / "all.jsonl", None) == (3, 3)
    assert convert(tmp_path / "in.json", tmp_path / "two.jsonl", 2) == (2, 2)
    assert (tmp_path / "two.jsonl").read_text() == LINE * 2


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'[{"target": [', b'{"a": 1}', b"\xff\xfe[", b"[1, 2]", b"\x00", b"[" * 5000]
)
def test_a_broken_file_ends_in_one_error_and_leaves_what_was_there(tmp_path, content):
    (tmp_path / "in.json").write_bytes(content)
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(PosttrainError):
        convert(tmp_path / "in.json", tmp_path / "out.jsonl", None)
    assert {path.name for path in tmp_path.iterdir()} == {"in.json", "out.jsonl"}
    assert (tmp_path / "out.jsonl").read_text() == "before"


NAMES = st.text("abcdeé,:{}", min_size=1, max_size=4)


@given(st.lists(st.builds(Triple, NAMES, st.sampled_from(["P19", "likes {subject}"]), NAMES, NAMES), max_size=40))
def test_questions_have_five_options_of_which_one_is_true(triples):
    questions, dropped = generate(triples, seed=0)
    assert len(questions) + sum(dropped.values()) == len(triples)
    truths = {(t.subject, t.predicate, t.object.casefold()) for t in triples}
    for item in questions:
        target = item["target"][0]
        assert len({choice.casefold() for choice in target["choices"]}) == 5
        true = [c for c in target["choices"] if (target["subject"], target["predicate"], c.casefold()) in truths]
        assert true == [target["object"]]
        assert target["options"] == ",".join(f"{a}:{c}" for a, c in zip("ABCDE", target["choices"], strict=True))
        assert target["correct_answer"][2:] == target["object"]
        assert conversation(item) is not None
    assert sorted(map(str, generate(triples[::-1], seed=0)[0])) == sorted(map(str, questions)) or dropped["duplicate"]


def test_trex_goes_through(shared_data, tmp_path):
    done = run_script(
        "data_prep/omcq.py", "--triples", shared_data / "trex/triples.jsonl",
        "--input", tmp_path / "questions.json", "--output", tmp_path / "out.jsonl",
        fresh=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_json_lines(tmp_path / "out.jsonl")
    triples = {
        (t["subject"], t["relation"], t["object"].casefold())
        for t in read_json_lines(shared_data / "trex/triples.jsonl")
    }
    assert 0.99 * len(triples) < len(rows) <= len(triples)
    letters = [row["conversations"][1]["content"][0] for row in rows]
    for letter in "ABCDE":
        assert letters.count(letter) / len(rows) == pytest.approx(0.2, abs=0.02)


def test_rows_of_a_bank_are_cut_padded_and_mapped():
    facts = [Fact("a bb ccc dddd", "id", "a", "b", "c"), Fact("", fault="no sentence"), Fact("a")]
    bank, mappings, left_out = build_bank(facts, encode, SHAPE)
    assert bank.tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert left_out == 0
    assert mappings[0] == {
        "database_index": 0, "uuid": "id", "sentence": "a bb ccc dddd", "subject": "a", "predicate": "b", "object": "c",
        "token_count": 4, "is_truncated": True,
    }  # fmt: skip
    assert mappings[1]["processing_error"] == "no sentence"


def test_facts_beyond_the_last_row_are_counted():
    bank, mappings, left_out = build_bank((Fact("a") for _ in range(7)), encode, SHAPE)
    assert (len(bank), len(mappings), left_out) == (4, 4, 3)


@pytest.mark.parametrize(
    "item, sentence",
    [("s", "s"), ({"sentence": "s"}, "s"), ({"text": "s"}, "s"), ({"target": [{"sentence": "s"}]}, "s"), ({}, ""),
     (None, ""), ({"target": []}, ""), ({"sentence": " "}, ""), ("\ud800", "")],
)  # fmt: skip
def test_forms_of_a_fact(item, sentence):
    fact = knowledge.as_fact(item)
    assert fact.sentence == sentence
    assert (fact.fault is None) == bool(sentence)


def test_a_bank_survives_the_disk(tmp_path):
    bank, mappings, _ = build_bank([Fact("a bb", "id")], encode, SHAPE)
    cache = tmp_path / "cache" / "bank.pt"
    write_bank(cache, bank, mappings, {"source_file": "facts.json"})
    assert torch.equal(load_bank(cache, SHAPE), bank)
    record = json.loads((tmp_path / "cache" / "bank_mapping.json").read_text())
    assert record["mappings"] == mappings
    assert {"total_entries", "knowledge_num", "knowledge_length", "source_file", "generation_time"} <= {
        *record["metadata"]
    }


@pytest.mark.parametrize(
    "bank, says",
    [(torch.zeros(4, 3), "float32"), (torch.zeros(4, 3, dtype=torch.int32), "int32"),
     (torch.zeros(12, dtype=torch.int64), "shape"), (torch.zeros(5, 3, dtype=torch.int64), "perfect square"),
     (torch.zeros(9, 3, dtype=torch.int64), "expected [4, 3]"), (torch.zeros(4, 2, dtype=torch.int64), "expected"),
     (torch.full((4, 3), 50), "ids from 50"), (torch.full((4, 3), -1), "ids from -1"), ({"bank": 1}, "dict")],
)  # fmt: skip
def test_a_bank_that_does_not_fit_is_refused(bank, says):
    with pytest.raises(BankError) as error:
        check_bank(bank, SHAPE, "bank.pt")
    assert says in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"no tensor", b"PK\x03\x04 no zip", b"cos\nsystem\n(S'true'\ntR."])
def test_a_cache_that_is_no_tensor_is_refused_and_never_executed(tmp_path, content):
    cache = tmp_path / "bank.pt"
    if content is not None:
        cache.write_bytes(content)
    with pytest.raises(BankError):
        load_bank(cache, SHAPE)


@pytest.mark.parametrize("rows, length, pad", [(3, 3, 0), (0, 3, 0), (4, 0, 0), (4, 3, 50), (4, 3, -1)])
def test_an_impossible_shape_is_refused(rows, length, pad):
    with pytest.raises(BankError):
        BankShape(rows, length, 50, pad)


@pytest.mark.slow
def test_the_bank_of_trex(shared_data, tmp_path):
    cache = tmp_path / "bank.pt"
    common = ["data_prep/knowledge_cache.py", "--tokenizer", "assets/tiny_init", "--cache", cache]
    sized = [*common, "--knowledge-num", 170 * 170]
    source = ["--triples", shared_data / "trex/triples.jsonl", "--patterns", shared_data / "trex/patterns.jsonl"]
    assert "nothing to build it from" in run_script(*sized).stderr
    done = run_script(*sized, *source)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bank_mapping.json").read_text())
    triples = read_json_lines(shared_data / "trex/triples.jsonl")
    patterned = {record["relation"] for record in read_json_lines(shared_data / "trex/patterns.jsonl")}
    assert record["metadata"]["total_entries"] == sum(triple["relation"] in patterned for triple in triples)
    assert "879 P31" in done.stdout
    assert not any("[X]" in entry["sentence"] or "[Y]" in entry["sentence"] for entry in record["mappings"])
    assert run_script(*sized).returncode == 0
    refused = run_script(*common, "--knowledge-num", 4)
    assert refused.returncode == 2 and "expected [4, 16]" in refused.stderr


def test_default_question_names_the_predicate():
    triples = [Triple("x", "colour", name, "") for name in "abcdefg"] + [Triple("y", "colour", "z", "")]
    questions, dropped = generate(triples, seed=1)
    assert dropped == {"too_few_objects": 7}
    assert questions[0]["target"][0]["question"] == "What is the colour of y?"
    assert omcq.LETTERS == "ABCDE"
