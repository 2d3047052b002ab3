"""src/grade.py says what was read and why; golds that are rounded have a tolerance where one is declared."""

import json

import pytest
from conftest import run_script

from posttrain.grading.grader import Grader, Verdict
from posttrain.grading.values.exact import explain
from posttrain.grading.values.rational import Tolerance


def test_the_script_says_what_was_read_and_why(tmp_path):
    rows = [
        {"gold": "72", "completion": "The answer is 72 marbles, in total."},
        {"gold": "7 days", "completion": r"\boxed{7 weeks}"},
        {"gold": "7", "completion": "The answer is 5 or maybe 7."},
        {"gold": r"\sqrt8", "completion": r"\boxed{2\sqrt2}"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_script("src/grade.py", "--rows", tmp_path / "rows.jsonl")
    marbles, weeks, hedged, root = done.stdout.strip().split("\n\n")
    assert "read      '72', from answer is: '72 marbles, in total'" in marbles and "verdict   correct" in marbles
    assert "verdict   wrong" in weeks and "because   units" in weeks
    assert "states no answer for certain" in hedged and "verdict   unparsed" in hedged
    assert "verdict   correct" in root and "because   algebra" in root
    (tmp_path / "rows.jsonl").write_text('{"gold": "1"}')
    done = run_script("src/grade.py", "--rows", tmp_path / "rows.jsonl")
    assert done.returncode and "line 1: no 'completion'; it has gold" in done.stdout + done.stderr


def test_the_rules_that_decide_are_named():
    assert explain("x = 5", "5") == ["named", "numbers"] or explain("x = 5", "5") == ["named"]
    assert explain("7 days", "7 weeks")[0] == "units"
    assert explain("5", "5") == []


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("3.14", "3.141", True),
        ("3.14", r"\pi", True),
        ("3.14", "3.15", False),
        (r"1.30 \times 10^{-5}", "0.000013", True),
        ("3", "3.001", False),  # an integer is exact
        (r"\frac{1}{3}", "0.333", False),
        ("314", "314.1", False),
    ],
)
def test_a_rounded_gold_has_a_tolerance_where_one_is_declared(gold, answer, right):
    with Grader(workers=1, tolerance=Tolerance(significant_digits=3)) as grader:
        (grade,) = grader.grade([gold], [f"\\boxed{{{answer}}}"], [False])
    assert (grade.verdict is Verdict.CORRECT) is right


def test_an_absolute_tolerance_and_none():
    for tolerance, right in ((Tolerance(absolute=0.01), True), (None, False)):
        with Grader(workers=1, tolerance=tolerance) as grader:
            (grade,) = grader.grade(["0.33"], [r"\boxed{1/3}"], [False])
        assert (grade.verdict is Verdict.CORRECT) is right
