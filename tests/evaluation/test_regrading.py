"""A result that an older version of the verifier graded is graded again from its samples."""

import json

from posttrain.evaluation.regrading import regrade
from posttrain.grading.grader import VERSION


def test_samples_of_an_older_version_are_graded_again(tmp_path):
    completions = ["The answer is 12 marbles.", r"\boxed{13}", r"\boxed{13.0}", "none"]
    samples = [
        {"id": "q", "sample": i, "gold": "12", "completion": text, "finish_reason": "stop", "tokens": 3, "answer": None,
         "verdict": "wrong", "correct_lenient": False, "vote": None, "symbolic": False}
        for i, text in enumerate(completions)
    ]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (tmp_path / "settings.json").write_text(
        json.dumps({"grader": {"name": "posttrain", "version": "1"}, "limit": None})
    )
    assert f"graded by version 1, now by {VERSION}: 2 of 4 changed" in (regrade(tmp_path) or "")
    new = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["verdict"] for sample in new] == ["correct", "wrong", "wrong", "unparsed"]
    assert [sample["vote"] for sample in new] == [0, 1, 1, None]
    assert [sample["tokens"] for sample in new] == [3] * 4
    assert json.loads((tmp_path / "settings.json").read_text())["grader"]["version"] == VERSION
    assert regrade(tmp_path) is None
    assert regrade(tmp_path / "nothing") is None
