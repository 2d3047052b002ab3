"""The grader: the last complete box against the gold, numbers exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading import Verdict, equal_answers, grade, last_boxed, to_number


@pytest.mark.parametrize(
    ("gold", "completion", "verdict"),
    [
        ("12", r"so \boxed{12}.", Verdict.CORRECT),
        ("12", r"\boxed{13}. Wait, \boxed{12}", Verdict.CORRECT),  # the last box counts
        ("12", r"\boxed{12} or \boxed{13}", Verdict.WRONG),
        ("12", r"\boxed{12} then \boxed{1", Verdict.CORRECT),  # the last complete box
        ("12", "the answer is 12", Verdict.UNPARSED),
        ("12", r"\boxed{12", Verdict.UNPARSED),
        ("12", r"\boxed{}", Verdict.WRONG),
        ("12", "", Verdict.UNPARSED),
        ("10800", r"\boxed{10,800}", Verdict.CORRECT),
        ("10,800", r"\boxed{10800}", Verdict.CORRECT),
        ("18", r"\boxed{18.0}", Verdict.CORRECT),
        ("18", r"\boxed{\$18}", Verdict.CORRECT),
        ("18", r"\boxed{18.}", Verdict.CORRECT),
        ("0.5", r"\boxed{\frac{1}{2}}", Verdict.CORRECT),
        ("0.5", r"\boxed{1/2}", Verdict.CORRECT),
        ("0.3333333", r"\boxed{1/3}", Verdict.WRONG),  # exact, not rounded
        ("1", r"\boxed{1.0000001}", Verdict.WRONG),
        ("-1.0", r"\boxed{-1}", Verdict.CORRECT),
        ("025", r"\boxed{25}", Verdict.CORRECT),  # AIME's leading zeros
        (r"\sqrt{2}", r"\boxed{\sqrt{2} }", Verdict.CORRECT),
        (r"x", r"\boxed{X}", Verdict.WRONG),
        ("3", r"\boxed{\text{3}}", Verdict.WRONG),  # text is not a number; the symbolic verifier decides such cases
        ("5", r"\boxed{1/0}", Verdict.WRONG),
    ],
)
def test_verdicts(gold, completion, verdict):
    assert grade(gold, completion, truncated=False)[0] is verdict


def test_a_cut_off_completion_is_truncated_unless_it_answered():
    assert grade("12", r"thinking \boxed{1", truncated=True) == (Verdict.TRUNCATED, None)
    assert grade("12", r"\boxed{12} and more", truncated=True) == (Verdict.CORRECT, "12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{\frac{1}{2}} \boxed{", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("no box", None),
        (r"\boxed{" * 300, None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_grading_never_raises_and_always_gives_one_outcome(gold, completion, truncated):
    verdict, answer = grade(gold, completion, truncated)
    assert verdict in Verdict
    assert (answer is None) == (verdict in (Verdict.UNPARSED, Verdict.TRUNCATED))


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_an_integer_is_equal(n):
    for form in (str(n), f"{n:,}", f"{n}.0", f"${n}$", f" {n} ."):
        assert equal_answers(str(n), form), form
    assert not equal_answers(str(n), str(n + 1))


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(numerator, denominator):
    assert to_number(f"\\frac{{{numerator}}}{{{denominator}}}") == to_number(f"{numerator}/{denominator}")


def test_a_number_too_long_to_convert_is_text():
    assert to_number("9" * 5000) is None
