"""A score is held against the published one of the same setting, and against no other."""

import json
import shutil

import pytest
from conftest import run_script

from posttrain.errors import PosttrainError
from posttrain.evaluation.reference import find_reference, setting_of, verdict
from posttrain.evaluation.results import SCHEMA_VERSION
from posttrain.evaluation.scoring import compute_metrics

SAMPLES = [
    {"id": str(i), "verdict": "correct", "finish_reason": "stop", "format": True, "format_compat": True,
     "correct_lenient": True, "vote": 0, "tokens": 9} for i in range(500)
]  # fmt: skip
METRICS = {
    **compute_metrics(SAMPLES),
    "schema": SCHEMA_VERSION,
    "benchmark": "math500",
    "data_sha256": "d",
    "limit": None,
    "expected_samples": 500,
    "checkpoint": {"name": "Qwen/Qwen2.5-Math-1.5B"},
    "grader": {"name": "posttrain"},
    "prompt": {"name": "question_only", "form": "boxed"},
    "decoding": {"temperature": 0.0, "max_new_tokens": 3000, "num_samples": 1},
    "accuracy": {"value": 0.60, "low": 0.556, "high": 0.642, "standard_error": 0.02},
}


def test_a_score_within_the_interval_of_the_published_one():
    """evaluation.md: 61.8 expected, 57.5 to 66.0 accepted."""
    row = find_reference(METRICS)
    assert (row["value"], setting_of(METRICS)) == (61.8, "no template, greedy, 3000 tokens")
    within, said = verdict(METRICS, row)
    assert within and "accepted 57.5% to 66.0%: within" in said


def test_each_other_template_of_the_table_falls_outside():
    for value in (0.504, 0.212, 0.330):
        within, said = verdict(METRICS | {"accuracy": {"value": value, "low": 0, "high": 1}}, find_reference(METRICS))
        assert not within and "OUTSIDE" in said and "the prompt" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"limit": 100}, "only the first 100 questions"),
        ({"prompt": {"name": "chat"}}, r"no published score of Qwen2\.5-Math-1\.5B on math500 \(chat, greedy, 3000"),
        ({"checkpoint": {"name": "outputs/x/final"}}, "known of it: none"),
    ],
)
def test_an_evaluation_unlike_any_published_one_is_refused(change, expected):
    with pytest.raises(PosttrainError, match=expected):
        find_reference(METRICS | change)


def test_the_script_exits_by_the_verdict(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    assert run_script("src/eval_check.py", tmp_path, fresh=True).returncode == 0
    worse = METRICS | {"accuracy": METRICS["accuracy"] | {"value": 0.33, "low": 0.3, "high": 0.4}}
    (tmp_path / "metrics.json").write_text(json.dumps(worse))
    done = run_script("src/eval_check.py", tmp_path)
    assert done.returncode == 1 and "OUTSIDE" in done.stdout and "Traceback" not in done.stderr
    shutil.rmtree(tmp_path)
    assert "metrics.json: missing; expected a finished evaluation" in run_script("src/eval_check.py", tmp_path).stderr
