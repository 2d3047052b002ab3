"""A result that an older version of the verifier graded is graded again from its samples."""

import json
from pathlib import Path

import pytest
from finished import GRADED, SETTINGS

from posttrain import digests
from posttrain.errors import PosttrainError
from posttrain.evaluation.regrading import regrade
from posttrain.evaluation.results import Result, read_metrics, read_samples, rebuild
from posttrain.grading.grader import VERSION

COMPLETIONS = ["The answer is 12 marbles.", r"\boxed{13}", r"\boxed{13.0}", "none"]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A finished evaluation of one question whose four samples version 1 called wrong."""
    decoding = {**SETTINGS["decoding"], "num_samples": 4}
    grader = {"name": "posttrain", "version": "1"}
    settings = {**SETTINGS, "grader": grader, "expected_samples": 4, "decoding": decoding}
    wrong = {"verdict": "wrong", "answer": None, "correct_lenient": False, "vote": None, "symbolic": False}
    samples = [
        {**GRADED[0], "id": "q", "sample": i, "gold": "12", "completion": text, "tokens": 3, **wrong}
        for i, text in enumerate(COMPLETIONS)
    ]
    Result(tmp_path / "x", settings).finish(samples)
    return tmp_path / "x"


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of a version without marks"])
def test_samples_of_an_older_version_are_graded_again(result, marked):
    if not marked:
        (result / digests.MARK).unlink()
    assert f"graded by version 1, now by {VERSION}: 2 of 4 changed" in (regrade(result) or "")
    settings, new = read_samples(result)
    assert [sample["verdict"] for sample in new] == ["correct", "wrong", "wrong", "unparsed"]
    assert [sample["vote"] for sample in new] == [0, 1, 1, None]
    assert [sample["tokens"] for sample in new] == [3] * 4
    assert settings["grader"]["version"] == VERSION
    assert regrade(result) is None
    assert read_metrics(result) == json.loads(json.dumps(rebuild(result)))
    assert read_metrics(result)["counts"]["correct"] == 1


@pytest.mark.parametrize("name", ["samples.jsonl", "settings.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"grader": 1}', None])
def test_a_damaged_result_is_one_line_and_stays_as_it_is(result, name, content):
    (result / digests.MARK).unlink()
    if content is None:
        (result / name).unlink()
    else:
        (result / name).write_text(content)
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    with pytest.raises(PosttrainError) as raised:
        regrade(result)
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before


def test_a_flipped_bit_in_samples_is_not_graded_again(result):
    """Its verdicts would be those of another text, and its new mark would vouch for them."""
    path = result / "samples.jsonl"
    path.write_text(path.read_text().replace("12 marbles", "13 marbles"))
    with pytest.raises(PosttrainError, match="was changed or damaged"):
        regrade(result)
