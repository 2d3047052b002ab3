"""Every format and every spelling of a row gives the same trace; what is broken is named or counted, never fatal."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.records import SourceError
from posttrain.data.traces.inputs import batches, find_inputs
from posttrain.data.traces.shapes import Shape, ShapeError, read_trace

ROWS = [{"question": f'{n} + 1?\n"ja, 你"', "response": f"\\boxed{{{n + 1}}}", "gold": str(n + 1)} for n in range(300)]


def items(path: Path) -> list:
    return list(find_inputs([path])[0].items())


def traces(path: Path) -> list:
    return [read_trace(line, Shape()) for _, line in items(path)]


def test_every_format_holds_the_same_traces(tmp_path):
    lines = b"".join(json.dumps(row).encode() + b"\n\n" for row in ROWS)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    array = json.dumps(ROWS, indent=1).encode()
    contents = {
        "a.jsonl": lines,
        "bom.jsonl": b"\xef\xbb\xbf" + lines,
        "a.json": array,
        "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
        "conversations.json": json.dumps({"conversations": ROWS}).encode(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.json.bz2": bz2.compress(array),
        "a.csv.xz": lzma.compress((tmp_path / "a.csv").read_bytes()),
        "a.jsonl.zst": pa.compress(lines, codec="zstd", asbytes=True),
        "a.json.zst": pa.compress(array, codec="zstd", asbytes=True),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = [read_trace(json.dumps(row).encode(), Shape()) for row in ROWS]
    for name in ("a.csv", "a.parquet", *contents):
        assert traces(tmp_path / name) == expected, name


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]


@pytest.mark.parametrize(
    ("record", "question", "response", "gold"),
    [
        ({"prompt": "q", "response": "r"}, "q", "r", None),
        ({"prompt": "q", "completion": "r", "answer": 4}, "q", "r", "4"),
        ({"input": "q", "output": "r"}, "q", "r", None),
        ({"question": "q", "answer": "r #### 1,234"}, "q", "r #### 1,234", "1234"),
        ({"instruction": "q", "completion": "r"}, "q", "r", None),
        ({"user": "q", "assistant": "r"}, "q", "r", None),
        ({"human": "q", "gpt": "r"}, "q", "r", None),
        ({"instruction": "do", "input": "this", "output": "r"}, "do\n\n输入: this", "r", None),
        ({"instruction": "do", "input": "", "output": "r"}, "do", "r", None),
        ({"instruction": "q", "output": "r"}, "q", "r", None),
        ({"problem": "q", "solution": "r", "answer": "7"}, "q", "r", "7"),
        ({"problem": "q", "generated_solution": "r", "expected_answer": "7", "solution": "x"}, "q", "r", "7"),
        ({"messages": CHAT, "problem": "p", "answer": "7"}, "q", "r", "7"),
        ({"conversations": SHARE}, "q", "r", None),
        ({"conversations": json.dumps(SHARE)}, "q", "r", None),  # as a CSV cell holds it
        ({"prompt": CHAT[:2], "completion": CHAT[2:], "answer": "7"}, "q", "r", "7"),
        ({"question": "q", "response": "r", "gold": [1]}, "q", "r", "1"),
        ({"question": "q", "response": "r", "gold": ["15"]}, "q", "r", "15"),
        ({"question": "q", "response": "r", "gold": True}, "q", "r", None),
        ({"question": "q", "response": "r", "gold": [], "answer": "a b\n#### 1,234"}, "q", "r", "1,234"),
        ({"question": "q", "response": "r", "reward_model": {"ground_truth": "13"}}, "q", "r", "13"),
        ({"prompt": CHAT[:2], "response": "r", "answer": "7"}, "q", "r", "7"),
        ({"prompt": "q", "completion": CHAT[2:], "answer": "7"}, "q", "r", "7"),
        ({"prompt": json.dumps(CHAT[:2]), "response": "r"}, "q", "r", None),
    ],
)
def test_every_spelling(record, question, response, gold):
    trace = read_trace(json.dumps(record).encode(), Shape())
    assert (trace.prompt[-1]["content"], trace.response, trace.gold) == (question, response, gold)


def test_templates_make_a_question_of_any_columns():
    shape = Shape("{subject} – {relation}?", "{object}", None, "rate")
    trace = read_trace(b'{"subject": "Paris", "relation": "P17", "object": "France", "rate": "0.5"}', shape)
    assert (trace.prompt[0]["content"], trace.response, trace.rate) == ("Paris – P17?", "France", 0.5)
    with pytest.raises(ShapeError, match=r"names \{object\}"):
        read_trace(b'{"subject": "Paris", "relation": "P17"}', shape)
    around = Shape("请回答以下问题：{prompt}", "回答：{response}")
    trace = read_trace(b'{"prompt": "{x}", "response": "r"}', around)
    assert (trace.prompt[0]["content"], trace.response) == ("请回答以下问题：{x}", "回答：r")


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b'"text"', b"3", b"null", b"{}", b'{"question": "q"}', b'{"question": 3, "response": []}',
        b'{"messages": [{"role": "user", "content": "q"}]}', b'{"messages": [1, 2]}', b'{"messages": "x"}',
        b'{"question": "\xff", "response": "r"}', b'{"question":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_a_named_fault(line):
    with pytest.raises(ShapeError):
        read_trace(line, Shape())


def test_hostile_lines_are_items_and_the_rest_is_read(tmp_path):
    good = json.dumps(ROWS[0]).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, b"\x00\x01", b"x" * 50_000, good]))
    found = list(find_inputs([tmp_path / "a.jsonl"], row_bytes=10_000)[0].items())
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert found[2][1] == "a line of more than 10000 bytes"
    (tmp_path / "a.csv").write_bytes(b"question,response\nq,r\nonly one\nq,r,more\n\xff,r\n")
    found = items(tmp_path / "a.csv")
    assert [isinstance(line, str) for _, line in found] == [False, True, True, False]
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert items(tmp_path / "empty.jsonl") == []


def test_what_ends_a_file_names_it_after_what_was_complete(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 20))
    contents = {
        "a.jsonl.gz": whole[: len(whole) // 2],
        "a.json": b'[{"question": "q", "response": "r"}, {"question',
        "bomb.json": b"[" * 100_000,
        "empty.json": b"",
        "a.parquet": b"PAR1 no",
        "not.jsonl.gz": b"plain",
        "not.jsonl.xz": b"plain",
        "not.jsonl.bz2": b"plain",
        "not.jsonl.zst": b"plain",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name):
            items(tmp_path / name)
    reader = iter(find_inputs([tmp_path / "a.jsonl.gz"])[0].items())
    assert next(reader)[0] == 1


def test_rows_are_read_whatever_the_first_one_is_and_a_column_without_a_name_is_one(tmp_path):
    row = {"question": "q", "response": "r"}
    (tmp_path / "null.json").write_text(json.dumps([None, row]))
    (tmp_path / "role.json").write_text(json.dumps([{"role": "algebra", "problem": "q", "solution": "r"}] * 2))
    (tmp_path / "one.json").write_text(json.dumps({"conversations": SHARE}))
    (tmp_path / "pandas.csv").write_text(",problem,solution\n0,q,r\n1,q,r,more\n2,q\n")
    assert [number for number, _ in items(tmp_path / "null.json")] == [1, 2]
    assert [trace.response for trace in traces(tmp_path / "role.json")] == ["r", "r"]
    assert [trace.response for trace in traces(tmp_path / "one.json")] == ["r"]
    whole, *faults = items(tmp_path / "pandas.csv")
    assert read_trace(whole[1], Shape()).response == "r"
    assert [fault for _, fault in faults] == ["not as many columns as the header's 3"] * 2


def test_json_lines_named_json_are_told_their_name(tmp_path):
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(SourceError, match=r"one object per line, name it \.jsonl"):
        items(tmp_path / "a.json")


def test_inputs_that_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for path, said in (
        (tmp_path / "gone", "no such file"),
        (tmp_path / "a.txt", "expected one of"),
        (tmp_path, "no .j"),
    ):
        with pytest.raises(SourceError, match=said):
            find_inputs([path])


def test_batches_hold_everything_in_order():
    numbered = [(n, b"x" * 2**20) for n in range(11)]
    found = list(batches(numbered))
    assert [item for batch in found for item in batch] == numbered
    assert len(found) == 3
