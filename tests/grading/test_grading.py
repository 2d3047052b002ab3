"""What is equal, what is not, and how an answer without one is called."""

import itertools
import json

import pytest
from graded import verdict
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading.grader import Verdict
from posttrain.grading.reading.extract import extract_answer
from posttrain.grading.reading.normalise import normalise
from posttrain.grading.values.exact import equal
from posttrain.grading.values.rational import to_rational

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("10800", "10,800", True),
        ("10,800", "10800", True),
        ("18", "18.0", True),
        ("18", r"\$18.00", True),
        ("0.5", r"\frac{1}{2}", True),
        ("0.5", "1/2", True),
        ("0.3333333", "1/3", False),  # exact, not rounded
        ("1", "1.0000001", False),
        ("-1.0", "-1", True),
        ("025", "25", True),
        ("0.5", r"50\%", True),
        ("9", r"9\%", True),
        ("1", r"1\%", False),
        ("35", "0.35", False),
        (r"33.5\%", "0.335", True),
        (r"33.5\%", "33.5", True),
        ("5", "1/0", False),
        ("2^{64}", "18446744073709551617", False),
        (r"\frac{11}{4}", "2 3/4", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2)", "(1,2]", False),
        (r"\{1,2\}", "(1,2)", False),
        ("(1,2)", "{1,2}", True),  # braces that LaTeX does not print
        ("(1,2)", "{2,1}", False),
        (r"\{1,2\}", "{2,1}", True),
        ("1,2", "1.2", False),  # a list
        ("1,22", "1.22", False),
        ("7", "x=5 or x=7", False),
        ("7", "x=5; x=7", False),
        ("7", r"x=5 \text{ or } x=7", False),
        ("7", r"x=5 \lor x=7", False),
        ("5,7", r"x=5 \lor x=7", True),
        ("7", "x=1 or x=2 or x=7", False),
        ("x=5 or x=7", "7", False),
        ("5,7", "x=5 or x=7", True),
        ("5", r"5 \text{ for odd } n, 7 \text{ for even } n", False),
        ("5", r"5 \text{ for odd n or 7 for even n}", None),
        ("5", r"5 \text{ for } n > 2", True),
        ("[2,5)", "2,5", False),
        ("(2,5]", "2,5", False),
        ("(2,5)", "2,5", True),
        ("x=3,y=4", "4,3", False),
        ("x=3,y=4", "3,4", True),
        ("x=3,y=4", "y=4,x=3", True),
        ("x<3", "y<3", False),
        ("1<x<3", "1<y<3", False),
        ("x<3", r"(-\infty,3)", True),
        (r"\{x \mid x<3\}", "y<3", True),
        ("2516_8", "2516", False),
        ("2516", "2516_8", False),
        ("2516_8", "2516_{8}", True),
        ("11", "11_{10}", None),
        ("2n + 3 m", "2n+3", None),
        ("3m", "3 m", True),
        ("3", "3 m", True),
        ("3 m", "3 m", True),
        ("x<1,000", "x<1,000", True),
        (r"x \in \mathbb{R}", r"(-\infty,\infty)", True),
        ("5", r"5\text{ million}", False),
        ("5000000", r"5\text{ million}", True),
        ("2500", "2.5 thousand dollars", True),
        ("1200000000", r"1,200 \text{ million dollars}", True),
        ("36", r"3 \text{ dozen eggs}", True),
        (r"(-\infty,-2]\cup[3,\infty)", r"x\leq -2 \text{ or } x\geq 3", True),
        (r"(-\infty,-2)\cup(3,\infty)", r"x<-2 \text{ or } x\ge 3", False),
        (r"(1,2)\cup(3,4)", "1<x<2 or 3<x<4", True),
        (r"\mathbb{R}", r"(-\infty,\infty)", True),
        (r"\emptyset", r"\varnothing", True),
        (r"\emptyset", r"\{\}", True),
        ("no", r"\text{No}", True),
        ("Odd", "odd", True),
        ("yes", "no", False),
        ("true", "True", True),
        ("101,102", "101, 102", True),
        ("101,102", "102, 101", True),
        ("101,102", "101, 103", False),
        ("101,102", "101102", True),
        ("2y = 4x = z = 8", "8", True),
        ("2y = 4x = z = 8", "4", False),
        ("1,2", "2 and 1", True),
        ("5", "x=5", True),
        (r"\text{Monday}", "monday", True),
        ("C", "(C)", True),
        ("x", "X", None),  # a letter is algebra
        (r"\sqrt{2}", r"\sqrt{3}", None),
    ],
)
def test_what_is_decided_without_sympy(gold, answer, expected):
    assert equal(gold, answer) is expected


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}", CORRECT),
        ("(x+1)(x-1)", "x^2-1", CORRECT),
        ("x", "X", WRONG),
        (r"\pi", "3.14159265358979", WRONG),
        ("4", "(lambda: 4)()", WRONG),
        ("y=2x+1", "2x+1", CORRECT),
        (r"\frac{1}{2^{80}}", r"\frac{1}{2^{81}}", WRONG),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", CORRECT),
    ],
)
def test_algebra(grader, gold, answer, expected):
    assert verdict(grader, gold, f"\\boxed{{{answer}}}") is expected


def test_outcomes_without_an_answer(grader):
    assert verdict(grader, "12", r"thinking \boxed{1", truncated=True) is Verdict.TRUNCATED
    assert verdict(grader, "12", r"thinking \boxed{1", truncated=False) is UNPARSED
    assert verdict(grader, "12", r"\boxed{12} and more", truncated=True) is CORRECT
    for cut in ("so the answer is 1", "#### 1", r"\boxed 1", "<answer> 1"):  # it may have been going to write 15
        assert verdict(grader, "1", cut, truncated=True) is Verdict.TRUNCATED
    assert verdict(grader, "1", "<answer> 1 </answer> so", truncated=True) is CORRECT


def test_the_sharp_cases(grader, shared_data):
    cases = [json.loads(line) for line in (shared_data / "verifier/sharp_cases.jsonl").read_text().splitlines()]
    grades = grader.grade([c["gold"] for c in cases], [c["response"] for c in cases], [False] * len(cases))
    missed = [c["note"] for c, g in zip(cases, grades, strict=True) if (g.verdict is CORRECT) != c["expected"]]
    assert not missed


@pytest.mark.parametrize(
    ("file", "field"),
    [("math/math500.jsonl", "answer"), ("aime24/test.jsonl", "answer"), ("amc23/test.jsonl", "answer")],
)
@pytest.mark.parametrize("form", [r"\boxed{%s}", "</think> <answer> %s </answer>", "so\n#### %s"])
def test_every_gold_equals_itself_and_not_the_next(grader, shared_data, file, field, form):
    golds = [str(json.loads(line)[field]) for line in (shared_data / file).read_text().splitlines()]
    same = grader.grade(golds, [form.replace("%s", gold) for gold in golds], [False] * len(golds))
    assert [g for g, grade in zip(golds, same, strict=True) if grade.verdict is not CORRECT] == []
    pairs = [(a, b) for a, b in itertools.pairwise(golds) if normalise(a) != normalise(b).split("=")[-1]]
    other = grader.grade([a for a, _ in pairs], [form.replace("%s", b) for _, b in pairs], [False] * len(pairs))
    accepted = [pair for pair, grade in zip(pairs, other, strict=True) if grade.verdict is CORRECT]
    assert accepted == []


@given(st.text(max_size=60), st.text(max_size=60))
def test_deciding_never_raises(gold, answer):
    assert equal(gold, answer) in (True, False, None)
    extract_answer(answer)


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_an_integer_is_equal(n):
    for form in (str(n), f"{n:,}", f"{n}.0", f"${n}$", f" {n} .", f"\\text{{Answer: }}{n}"):
        assert equal(str(n), form) is True, form
    for other in (n + 1, -n if n else 1, 10 * n + 1):
        assert equal(str(n), str(other)) is False


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(numerator, denominator):
    assert to_rational(f"\\frac{{{numerator}}}{{{denominator}}}") == to_rational(f"{numerator}/{denominator}")


@given(st.text(alphabet="0123456789+-*/^(){}.%! ", max_size=30))
def test_arithmetic_is_bounded(text):
    try:
        value = to_rational(text)
    except ZeroDivisionError:
        return
    assert value is None or value.denominator > 0


def test_votes_group_equal_answers_and_leave_out_those_that_give_none(grader):
    answers = [r"\boxed{0.5}", r"\boxed{2}", r"\boxed{\frac{4}{2}}", "none", r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}"]
    grades = grader.grade([r"\frac12"] * 6, answers, [False] * 6)
    (votes,) = grader.votes([grades])
    assert votes[0] == 0
    assert votes[3] is None
    assert votes[1] == votes[2] != votes[4] == votes[5]
    assert grader.votes([[], grades[3:4]]) == [[], [None]]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\{1\pm\sqrt{7},-3\}", r"\{-3, 1+\sqrt{7}, 1-\sqrt{7}\}"),
        (r"\frac{5}{2}n + \frac{1}{2}m", r"\dfrac{5n + m}{2}"),
        (r"23,\! 456,\! 789", "23456789"),
        (r"(\sqrt2,-1),(-\sqrt2,-1)", r"(\pm\sqrt{2},-1)"),
        ("x<=1", "-x>=-1"),
        (r"x\le 5", r"5\ge x"),
        ("(a,b)=(4,9)", "(4,9)"),
        ("S_{ABCD}:S=3:8", "3:8"),
        (r"\frac{AC}{BC}=\frac{2}{\sqrt{3}}", r"\frac{2}{\sqrt{3}}"),
        ("|AB|=1", "1"),
        ("A:B=1", "1"),
        (r"x \in [-3,8]", r"-3 \\le x \\le 8"),
        ("12", r"12^{\mathrm{th}}"),
        ("17th Day", "17"),
        ("140", r"140\textnormal{ miles}"),
        (r"31\%", "31 percent"),
        (r"31\%", "31 pct"),
        (r"\begin{bmatrix}0 & 0 \\0 & 0\end{bmatrix}", r"\begin{pmatrix}0 & 0 \\0 & 0\end{pmatrix}"),
        (
            r"\begin{pmatrix}3 & 4\end{pmatrix}",
            r"\begin{pmatrix}1 & 2\end{pmatrix} + \begin{pmatrix}2 & 2\end{pmatrix}",
        ),
        ("(8,1),(1,2)", "(1,2),(8,1),(8, 1)"),
        (r"\text{only }x=0", "0"),
        (r"x=\pm 2", "2,-2"),
        (r"\pm 3", "-3,3"),
        (r"1\pm\sqrt2", r"1+\sqrt2, 1-\sqrt2"),
        ("m=1,n=4;m=3,n=8", "(1,4),(3,8)"),
        (r"m = 1, n = 4 \quad \text{and} \quad m = 3, n = 8", "m=1,n=4;m=3,n=8"),
        ("1000", "1 000"),
        ("$2/5$", r"\frac{2}{5} \textbf{meters}"),
        ("5,7,6", "a(1)=5, a(2)=7, a(3)=6"),
        ("2,9", "Least: 2, Greatest: 9"),
        (r"\begin{pmatrix} -4 \\ 11 \\ 6 \end{pmatrix}", "(-4,11,6)"),
        (r"\dfrac{3\pi}{4}", r"135^\circ"),
        ("7^{1/50}", "7^{0.02}"),
        (
            r"f(x) = \text{sin}\bigg(\\frac{\\pi}{3}x + 1\bigg)",
            r"\sin\left( \dfrac{\pi}{3}x + 1 \right)",
        ),
        ("135", "135°"),
        ("2", r"x = \frac{4}{2} = 2"),
        (r"\frac{\sqrt3}{2}", r"\sin 60^\circ"),
        (r"\begin{pmatrix} -4 \\ 11 \\ 6 \end{pmatrix}", r"\begin{bmatrix} -4 \\ 11 \\ 12/2 \end{bmatrix}"),
    ],
)
def test_other_ways_to_write_an_answer(grader, gold, answer):
    assert verdict(grader, gold, f"<answer>{answer}</answer>") is CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "x+2=5"),
        ("5", "2x=5"),
        ("0", "3x-y+13=0"),
        ("4", "x^2+y^2=4"),
        ("x^2+y^2=4", "4"),
        ("3x-y+13=0", "0"),
        ("xy=1", "1"),
        ("5", "x=3=5"),
        ("y/x=3", "3"),
        (r"\frac{y}{x}=3", "3"),
        ("5", "5m"),
        ("1,1,2", "1,2"),
        ("(1,3)", r"\{1,3\}"),
        ("[1,2)", "(1,2]"),
        (r"\pm 3", "3"),
        ("3", r"\pm 3"),
        ("x<3", "x>3"),
        (r"5\le x", r"x\le 5"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"31\%", "32 percent"),
        ("3:8", "3:9"),
        ("(1,1,2)", "(1,2)"),
        ("m=1,n=4;m=3,n=8", "(4,1),(8,3)"),
        ("m=1,n=4;m=3,n=8", "n=1,m=4;n=3,m=8"),
        (r"\dfrac{3\pi}{4}", r"136^\circ"),
        ("7^{1/50}", "7^{0.0200001}"),
        (r"\pi", "3.14159265358979"),
        (r"\begin{pmatrix} 1 \\ 2\end{pmatrix}", "(2,1)"),
        (r"\begin{pmatrix} 1 \\ 2\end{pmatrix}", r"\{1,2\}"),
        ("1 000 000", "1000"),
        ("10:30", "30"),
        ("7", r"5 \to 7"),
        ("7", r"5 \Rightarrow 7"),
        ("7", "5 | 7"),
        ("7", r"5 \mid 7"),
        ("7", r"5 \\ 7"),
        ("5", r"5 \text{ for odd n or 7 for even n}"),
        ("5", r"5 \text{ for odd n} \text{ otherwise } 7"),
        (r"\begin{pmatrix}\sqrt2&0\\0&1\end{pmatrix}", r"\begin{pmatrix}1.414214&0\\0&1\end{pmatrix}"),
        (r"\begin{pmatrix}1/3&0\\0&1\end{pmatrix}", r"\begin{pmatrix}0.3333333&0\\0&1\end{pmatrix}"),
        ("y'", "y"),
        ("2n + 3 m", "2n+3"),
    ],
)
def test_what_looks_alike_and_is_not(grader, gold, answer):
    assert verdict(grader, gold, f"<answer>{answer}</answer>") is WRONG


def test_a_gold_that_is_a_whole_solution_is_read(grader):
    assert verdict(grader, r"So $x = 3$ and the answer is \boxed{12}.", r"\boxed{12.0}") is CORRECT
    assert verdict(grader, r"\(\boxed{5 \text{ and } 9}\)", r"\boxed{9,5}") is CORRECT


def test_what_does_not_change_an_answer_does_not_change_its_verdict(grader, shared_data):
    """MATH-500's golds behind 100 kB of text, in other dress, and, for numbers, off by a little."""
    golds = [json.loads(line)["answer"] for line in (shared_data / "math/math500.jsonl").read_text().splitlines()]
    filler = "We try x = 3 and get nothing. " * 3500
    for form in (filler + r"\boxed{%s}", r"\boxed{$%s$}", r"\boxed{\displaystyle %s}", r"**\boxed{%s}**."):
        grades = grader.grade(golds, [form.replace("%s", gold) for gold in golds], [False] * len(golds))
        assert [g for g, grade in zip(golds, grades, strict=True) if grade.verdict is not CORRECT] == [], form[-30:]
    numbers = [int(gold) for gold in golds if gold.lstrip("-").isdigit()]
    for change in (lambda n: n + 1, lambda n: -n or 1, lambda n: 10 * n or 1):
        wrong = [f"so\n#### {change(n)}" for n in numbers]
        grades = grader.grade(list(map(str, numbers)), wrong, [False] * len(numbers))
        assert {grade.verdict for grade in grades} == {WRONG}


def test_gsm8k_golds_equal_themselves(grader, shared_data):
    lines = (shared_data / "gsm8k/test.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"].split("####")[1].strip() for line in lines]
    for form in (r"\boxed{%s}", "</think> <answer> %s </answer>", "so\n#### %s"):
        grades = grader.grade(golds, [form.replace("%s", gold) for gold in golds], [False] * len(golds))
        assert {grade.verdict for grade in grades} == {CORRECT}


@pytest.mark.parametrize("piece", ["x<", "(", r"\{1,", "x=", r"\frac{", r"\pm ", "1,2;", "^"])
def test_what_repeats_itself_is_decided_too(piece):
    assert equal("(1,2)", piece * (1990 // len(piece))) in (False, None)
