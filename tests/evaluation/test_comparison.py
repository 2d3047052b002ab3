"""Paired tests against published vectors; runs that are not alike are refused by the field's name."""

import json

import numpy as np
import pytest
from conftest import run_script

from posttrain.evaluation.comparison import (
    MUST_AGREE,
    ComparisonError,
    compare,
    detectable_difference,
    holm,
    mcnemar,
    paired_interval,
    sign_flip,
)
from posttrain.evaluation.results import SCHEMA_VERSION, ResultError
from posttrain.evaluation.scoring import compute_metrics


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(5, 15, 0.041389), (0, 6, 0.031250), (12, 25, 0.047031), (10, 10, 1.0), (1, 2, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_vectors(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, abs=1e-6)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_pairing_narrows_the_interval():
    a, b = ([int(x) for x in text] for text in ("1101011011", "1001010011"))
    mean, low, high = paired_interval(np.array(a) - np.array(b))
    assert mean == pytest.approx(0.2)
    assert (high - low) / 2 == pytest.approx(2.2621572 * 0.133333, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(30, 0.1, 0.162), (30, 0.2, 0.229), (40, 0.1, 0.140), (500, 0.1, 0.040)]
)
def test_what_a_benchmark_could_see(n, share, expected):
    differences = np.array([1.0] * round(n * share) + [0.0] * (n - round(n * share)))
    assert detectable_difference(differences) == pytest.approx(expected, abs=6e-4)


def test_sign_flips_are_exact_for_few_questions_and_agree_beyond():
    assert sign_flip(np.ones(6)) == pytest.approx(2 / 2**6)
    assert sign_flip(np.zeros(5)) == 1.0
    many = np.array([0.5] * 14 + [-0.5] * 7 + [0.0] * 4)
    assert sign_flip(many) == pytest.approx(mcnemar(7, 14), abs=0.02)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


SETTINGS = {
    "schema": SCHEMA_VERSION, "benchmark": "x", "data_sha256": "d", "limit": None,
    "prompt": {"name": "chat", "hash": "h", "form": "boxed"}, "checkpoint": {"name": "m"}, "expected_samples": 8,
    "decoding": {"temperature": 0.0, "num_samples": 1, "max_new_tokens": 9},
    "grader": {"name": "posttrain", "version": "2"},
}  # fmt: skip


def write(directory, verdicts, **changes):
    directory.mkdir(parents=True)
    samples = [
        {
            "id": f"q{i}", "sample": 0, "prompt_hash": "h", "answer": "1", "verdict": "correct" if v else "wrong",
            "gold": "1", "completion": f"{v}", "tokens": i,
            "finish_reason": "stop", "format": True, "format_compat": True, "correct_lenient": True, "vote": 1 - v,
        }
        for i, v in enumerate(verdicts)
    ]  # fmt: skip
    said = SETTINGS | {"expected_samples": len(samples)} | changes
    (directory / "metrics.json").write_text(json.dumps(compute_metrics(samples) | said))
    (directory / "settings.json").write_text(json.dumps(said))
    (directory / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    return directory


def test_a_comparison_names_what_changed(tmp_path):
    a = write(tmp_path / "a/x", [1, 0, 0, 0, 0, 0, 0, 1])
    b = write(tmp_path / "b/x", [0, 1, 1, 1, 1, 1, 1, 1])
    result = compare(a, b)
    assert (result.a, result.b) == (0.25, 0.875)
    assert result.worse == ["q0"]
    assert result.better == ["q1", "q2", "q3", "q4", "q5", "q6"]
    assert result.p == pytest.approx(mcnemar(1, 6))
    assert (result.strict, result.lenient) == (0.625, 0.0)
    assert [bin_["a"]["n"] for bin_ in result.lengths] == [bin_["b"]["n"] for bin_ in result.lengths] == [2, 1, 2, 1, 2]
    done = run_script("src/compare.py", tmp_path / "a", tmp_path / "b", "--flips", 1, "--lengths", fresh=True)
    assert "50.0% of 2" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "+62.5%" in done.stdout
    assert "x q0: A right, B wrong" in done.stdout


@pytest.mark.parametrize("field", MUST_AGREE)
def test_runs_that_are_not_alike_are_refused(tmp_path, field):
    value = SETTINGS[field]
    other = {**value, "name": "other"} if isinstance(value, dict) else 5 if value is None else f"{value}, another"
    a, b = write(tmp_path / "a", [1, 0]), write(tmp_path / "b", [1, 0], **{field: other})
    with pytest.raises(ComparisonError, match=f"{field} differs"):
        compare(a, b)


def test_each_checkpoint_stops_at_its_own_end(tmp_path):
    ends = [{"decoding": {**SETTINGS["decoding"], "stop_token_ids": [i]}} for i in (0, 2)]
    assert compare(write(tmp_path / "a", [1, 0], **ends[0]), write(tmp_path / "b", [1, 0], **ends[1])).p == 1.0


def test_other_questions_are_not_intersected(tmp_path):
    with pytest.raises(ComparisonError, match="different questions"):
        compare(write(tmp_path / "a", [1, 0]), write(tmp_path / "b", [1, 0, 1]))
    with pytest.raises(ResultError, match="missing"):
        compare(tmp_path / "a", tmp_path / "c")
