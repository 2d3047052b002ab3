"""Imitated graders give the verdicts that were seen of the originals, right and wrong ones."""

import json

import pytest
from conftest import run_script
from finished import GRADED, SETTINGS

from posttrain.evaluation.published_graders import NAMES, PublishedGrader, beside, make_grader
from posttrain.evaluation.results import ResultError
from posttrain.grading.grader import Verdict


def accepts(name: str, form: str, pairs: list[tuple[str, str]]) -> list[bool]:
    with make_grader(name, form, workers=1) as grader:
        grades = grader.grade([g for g, _ in pairs], [c for _, c in pairs], [False] * len(pairs))
    return [grade.verdict is Verdict.CORRECT for grade in grades]


def test_qwen_accepts_what_it_is_known_to_accept():
    pairs = [
        ("5", r"\boxed{500}"), ("5", r"\boxed{0.05}"), ("1234567", r"\boxed{1,234,568}"), ("[1,2)", r"\boxed{(1,2]}"),
        ("x<3", r"\boxed{x>3}"), ("12", r"\boxed{12"), (r"\sqrt{8}", r"\boxed{2\sqrt2}"), ("18", "so it is 18"),
        ("5", r"\boxed{6}"), ("18", "nothing"), (r"\sqrt{8}", r"\boxed{\sqrt{7}}"),
    ]  # fmt: skip
    assert accepts("qwen", "box", pairs) == [True] * 8 + [False] * 3


def test_drgrpo_wants_its_tags_and_reads_what_follows_them():
    completions = [
        "x </think> <answer>7</answer>", "x </think>\n<answer>7</answer>", "x </think><answer>7</answer>",
        "x </think> <answer>7", "x </think> <answer>7</answer> so", "x </think> <answer>The answer is 7</answer>",
        "</think> <answer>7</answer>",
    ]  # fmt: skip
    assert accepts("drgrpo", "tags", [("7", c) for c in completions]) == [True] + [False] * 5 + [True]
    assert accepts("drgrpo", "box", [("7", r"so \boxed{7}"), ("7", "so 7"), ("7", r"\boxed{8}")]) == [
        True,
        False,
        False,
    ]


def test_math_verify_is_its_own_call():
    pairs = [("7", "so 7"), ("0.5", r"\boxed{0.5000001}"), ("7", r"\boxed{8}")]
    assert accepts("mathverify", "box", pairs) == [True, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_what_hangs_is_a_timeout_and_injected_code_is_not_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr("posttrain.evaluation.published_graders.DEADLINE_SECONDS", 1.0)
    attack = tmp_path / "hacked"
    pairs = [
        (r"\sqrt{7}", r"\boxed{9^{9^{9^{9}}}}"),
        (r"\sqrt{7}", f"\\boxed{{__import__('os').system('touch {attack}')}}"),
    ]
    assert accepts(name, "box", [*pairs, ("7", r"\boxed{7}")]) == [False, False, True]
    assert not attack.exists()


def test_a_timeout_is_not_remembered():
    with PublishedGrader("mathverify", "box", workers=1) as grader:
        grader.published.deadline_seconds = 0.5
        (grade,) = grader.grade([r"\sqrt{7}"], [r"\boxed{9^{9^{9^{9}}}}"], [False])
        assert grade.verdict is Verdict.TIMEOUT
        assert grader.decided == {}


def test_a_finished_evaluation_is_graded_beside(tmp_path):
    samples = [
        {**GRADED[0], "gold": "5", "completion": r"\boxed{500}", "answer": "500", "verdict": "wrong"},
        {**GRADED[1], "gold": "5", "completion": r"\boxed{5}", "answer": "5"},
    ]
    with pytest.raises(ResultError, match="has no settings"):
        beside(tmp_path, "qwen")
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, "prompt": {"name": "chat", "form": "box"}}))
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n")
    lines = beside(tmp_path, "qwen").split("\n")
    assert lines[0].endswith("qwen 2 of 2 correct, here 1")
    assert lines[1:] == ["  q0/0: correct by qwen: '500' for '5'"]


@pytest.mark.slow
def test_the_result_names_its_grader(tiny_data, tmp_path):
    done = run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", "assets/tiny_base", "--data_dir", tiny_data,
        "--benchmarks", "tiny_1step", "--output_dir", tmp_path, "--limit", 4, "--grader", "mathverify",
        fresh=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "tiny_1step/metrics.json").read_text())
    assert metrics["grader"]["name"] == "mathverify"
    assert "grader mathverify" in done.stdout
