"""JSON Lines: what was written is read, and a line that is none is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import jsonl
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
