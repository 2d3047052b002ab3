"""Two evaluations of the same weights, answer by answer."""

import copy

import pytest
from finished import GRADED, SETTINGS
from hypothesis import given
from hypothesis import strategies as st

from posttrain import atomic
from posttrain.evaluation.agreement import agreement_table, first_difference, read_answers
from posttrain.evaluation.comparison import ComparisonError
from posttrain.evaluation.results import SAMPLES_FILE, write_metrics, write_samples


@given(st.text(), st.text(), st.text())
def test_texts_part_after_what_they_share(head, a, b):
    place = first_difference(head + a, head + b)
    assert (place is None) == (a == b)
    if place is not None:
        assert len(head) <= place <= max(len(head + a), len(head + b))
        assert (head + a)[:place] == (head + b)[:place]
        assert (head + a)[place : place + 1] != (head + b)[place : place + 1]


def evaluated(directory, texts, backend, **changes):
    settings = copy.deepcopy(SETTINGS) | {"expected_samples": len(texts), "backend": {"name": backend}} | changes
    samples = [
        GRADED[0] | {"id": f"q{i}", "completion": text}
        | ({} if "1" in text else {"verdict": "wrong", "answer": "2", "correct_lenient": False, "vote": 1})
        for i, text in enumerate(texts)
    ]  # fmt: skip
    write_samples(directory / SAMPLES_FILE, samples)
    atomic.write_json(directory / "settings.json", settings)
    write_metrics(directory, settings, samples)
    return directory


def test_the_table_counts_what_is_the_same_and_shows_where_texts_part(tmp_path):
    a = evaluated(tmp_path / "a", ["is 1", "so is 1", "then 1", "say 2"], "transformers")
    b = evaluated(tmp_path / "b", ["is 1", "so it 1", "then 2", "say 2"], "vllm")
    assert [answer.character for answer in read_answers(a, b)] == [None, 4, 5, None]
    said = agreement_table(a, b, 1)
    assert "A: transformers\nB: vllm\n4 answers of both" in said
    assert [line.split()[0] for line in said.splitlines()[3:6]] == ["2", "3", "3"]
    assert said.endswith("q1 sample 0: correct | correct, from character 4: 's 1' | 't 1'")


def test_what_was_asked_otherwise_is_refused(tmp_path):
    a = evaluated(tmp_path / "a", ["1", "1"], "x")
    b = evaluated(tmp_path / "b", ["1", "1"], "x", data_sha256="another")
    with pytest.raises(ComparisonError, match="data_sha256 differs"):
        agreement_table(a, b, 0)
