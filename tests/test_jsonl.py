"""JSON Lines: what was written is read, and a line that is none is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import jsonl
from posttrain.digests import DamageError
from posttrain.errors import PosttrainError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=3))


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5))
def test_objects_come_back_whatever_their_text(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), newline="")
    assert jsonl.read_lines(path, {}, "") == objects


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\ufeff{"a": "1\u20282\x853"}\r\n\n{"a": "4"}', encoding="utf-8", newline="")
    assert jsonl.read_lines(path, {"a": str}, "") == [{"a": "1\u20282\x853"}, {"a": "4"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", r"x.jsonl:2: is \[1\], expected dict; mend it"),
        ('{"a": 1}', r"x.jsonl:2: a is 1, expected str; mend it"),
        ('{"b": "1"}', r"x.jsonl:2: has no 'a'; mend it"),
        ('{"a": "1"', r"x.jsonl:2: not JSON \(.*\); mend it"),
        ('{"a": "\\ud800"}', r"x.jsonl:2: not JSON \(.*\); mend it"),
        ('{"a": ' + "[" * 100_000, r"x.jsonl:2: not JSON \(is nested too deeply\); mend it"),
    ],
)
def test_a_line_that_is_none_is_named_with_its_reason(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "1"}\n' + line + "\n")
    with pytest.raises(PosttrainError, match=reason):
        jsonl.read_lines(path, {"a": str}, "mend it")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PosttrainError, match=r"nosuch.jsonl: cannot be read .*; mend it"):
        jsonl.read_lines(tmp_path / "nosuch.jsonl", {}, "mend it")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(PosttrainError, match=r"bytes.jsonl: cannot be read .*; mend it"):
        jsonl.read_lines(tmp_path / "bytes.jsonl", {}, "mend it")


def test_a_sealed_object_reads_back_and_any_flipped_bit_is_noticed(tmp_path):
    path, value = tmp_path / "x.json", {"loss": [0.1, -0.0, 1e22, 3], "text": "√\u2028", "none": None, "1": {"a": True}}
    jsonl.write_sealed(path, value)
    whole = path.read_bytes()
    assert jsonl.read_object(path, {}, "r") == value
    unnoticed = []
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            unnoticed.append(jsonl.read_object(path, {}, "r"))
        except DamageError as error:
            assert "\n" not in str(error)
    # blanks between values, and the key of the seal itself: what the object says is the same
    assert all(value.items() <= found.items() for found in unnoticed) and len(unnoticed) < 8 * len("seal") + 99


def test_an_object_without_seal_is_taken_as_it_is(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert jsonl.read_object(tmp_path / "x.json", {"a": int}, "r") == {"a": 1}


@pytest.mark.parametrize("name", ["metrics.jsonl", "a.b"])
def test_a_line_of_a_growing_file_that_changed_is_named(name, tmp_path):
    path = tmp_path / name
    jsonl.append(path, [{"step": 1, "loss": 2.5}])
    jsonl.append(path, [{"step": 2, "loss": 1.5}, {"step": 3, "text": "√\u2028"}])
    lines = path.read_bytes().split(b"\n")[:-1]
    assert [line["step"] for line in jsonl.read_lines(path, {"step": int}, "r")] == [1, 2, 3]
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.4"))
    with pytest.raises(DamageError, match=rf"{name}:2: was changed or damaged after it was written; r"):
        jsonl.read_lines(path, {"step": int}, "r")
    jsonl.rewrite(path, lines[:2])
    assert [line["loss"] for line in jsonl.read_lines(path, {"step": int}, "r")] == [2.5, 1.5]
    assert len(jsonl.line_digests(path)) == 2
