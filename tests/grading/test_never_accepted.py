"""What a policy could learn to write in place of an answer, and golds with one thing changed: none is accepted."""

import json
import random
import re
import time

import pytest

from posttrain.grading.grader import Verdict

CORRECT = Verdict.CORRECT


NOT_SEVEN = (
    # Several values, one of them right.
    "The answer is 5 or 7.", "The answer is 7 (or maybe 5).", "Answer: 7, or possibly 8", r"\boxed{x=5 or x=7}",
    r"\boxed{5, 7}", r"\boxed{7}\boxed{8}", r"\boxed{7} or \boxed{8}", "Answer: 1 2 3 4 5 6 7 8 9", "Answer: 5-7",
    "The answer is about 5 to 7", "The answer is between 6 and 8", "Answer: 8 (7 if n is even)", "<answer>7 8</answer>",
    # A value that is taken back, or not said to be the answer.
    "Answer: 7? No, 8.", "The answer is 7. Wait, it is 8.", "The answer is 7.\nActually, the answer is 8.",
    "The answer is not 7", "The answer isn't 7", "<answer>it could be 7</answer>", "The answer might be 7",
    # A word or sign that makes another value of it.
    "The answer is 7 million", "#### 7 thousand", "#### 7 dozen", "Answer: 7k", "Answer: 7M", "Answer: 7 halves",
    "The answer is at least 7 apples", "The answer is less than 7", "The answer is 7 squared", "Answer: minus 7",
    "The answer is 7 and a half", "The answer is seven tenths", "The answer is 7 times 3", "The answer is 7 + 1",
    "The answer is 7x", "The answer is 3 out of 7", "答案是 7 万", r"\boxed{7\text{ trillion}}", r"\boxed{7\text{K}}",
    r"\boxed{7\text{i}}", r"\boxed{7\text{ or more}}", r"\boxed{7\text{ thirds}}", r"\boxed{7\text{-ish}}",
    r"\boxed{7 \text{ for even } n}", r"\boxed{7 \text{ unless } x=0}", r"\boxed{7!}", r"\boxed{7 \pm 1}",
    r"\boxed{>7}",
    # Equations and chains that do not hold.
    r"\boxed{5 = 7}", r"\boxed{x = 5 = 7}", r"\boxed{7 \approx 12}", r"\boxed{x+2 = 7}", r"\boxed{2x=7}",
    r"\boxed{7 \ne 5}",
)  # fmt: skip


def test_no_hedge_and_no_changed_value_is_accepted(grader):
    grades = grader.grade(["7"] * len(NOT_SEVEN), NOT_SEVEN, [False] * len(NOT_SEVEN))
    accepted = [text for text, grade in zip(NOT_SEVEN, grades, strict=True) if grade.verdict is CORRECT]
    assert accepted == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7 days", "7 weeks"), ("7 km", "7 m"), ("5 dollars", "5 cents"), (r"\$5", r"5\text{ cents}"), ("5 cm",
        "5 cm^2"),
        ("5 m/s", "5 km/h"), ("5 marbles", "5 coins"), ("9 a.m.", "9 p.m."), ("180 degrees", "180 radians"),
        ("[1,2]", "1,2"), ("(1,2)", "[1,2]"), (r"(0,\infty)", r"0,\infty"), ("[0,1]", "x=0,x=1"),
        ("1011_2", "1011_3"), ("1011_2", "1011"), ("-12_5", "-12"), ("0.1_2", "0.1_3"), (r"2\cdot 10_5",
        r"2\cdot 10_6"),
        (r"\angle ABC", r"\angle BAC"), ("DBAC", "DBCA"), (r"\overrightarrow{AB}", r"\overrightarrow{BA}"),
        ("0.35", "35"), ("35", "0.35"), ("1", r"1\%"), ("81, 256", r"81, 256\%"), (r"\frac13", "0.3333"),
        ("x^2+C", "x^2"), ("a+b+c", "a+b+k"), (r"k\pi", r"2n\pi"), ("B", "A, B"), ("B", "A. 1 B. 2"),
    ],
)  # fmt: skip
def test_what_differs_in_kind_is_another_answer(grader, gold, answer):
    (grade,) = grader.grade([gold], [f"\\boxed{{{answer}}}"], [False])
    assert grade.verdict is not CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("50 cm", "0.5 m"), ("5 dollars", "500 cents"), ("10", "10 cm^2"), ("12 marbles", "12"), ("5", "5 mph"),
        ("60 miles per hour", "60 mph"), ("5", r"5~\mathrm{m/s}"), ("12:30", "12:30 PM"), ("8:34 p.m.", "20:34"),
        ("35", r"35\%"), (r"33.5\%", "0.335"), (r"\frac{\pi}{2}", r"90^\circ"), ("5", "five"), ("1/7", "one-seventh"),
        ("12", r"3 \times 4 = 12"), (r"\frac34", r"\frac34 = 0.75"), ("5", r"x \approx 5"), ("(1,2)", "(x,y)=(1,2)"),
        (r"x \ne 2", r"(-\infty,2)\cup(2,\infty)"), (r"(-\infty,-1)\cup(1,\infty)", "|x|>1"), ("(2,3)", "]2,3["),
        (r"(0,1)\cup(1,2)", r"(0,2)\setminus\{1\}"), (r"\frac13", r"0.333\ldots"), (r"\frac16", r"0.1\dot6"),
        ("x=1, y=2", r"\begin{cases}x=1\\y=2\end{cases}"), ("(1,2,3)", r"\mathbf{i}+2\mathbf{j}+3\mathbf{k}"),
        (r"\sqrt3", "sqrt(3)"), (r"2^{1/4}", "2**(1/4)"), (r"(-\infty,5)", "(-inf,5)"), ("1011_2",
        r"1011_{\text{two}}"),
        ("x^2+C", "x^2+c"), (r"2k\pi, k\in\mathbb{Z}", r"2n\pi, n \in \mathbb{Z}"), ("f(x)=2x", "f(t)=2t"),
        ("1,2", "1、2"), ("5", "5厘米"), ("B", r"\textbf{(B)}\ 42"), ("42", r"\textbf{(B)}\ 42"),
    ],
)  # fmt: skip
def test_one_answer_in_two_spellings(grader, gold, answer):
    (grade,) = grader.grade([gold], [f"\\boxed{{{answer}}}"], [False])
    assert grade.verdict is CORRECT


def changed(gold: str, draw: random.Random) -> dict[str, str]:
    """The gold with one digit, sign, letter, unit or bracket changed, by what was changed."""
    plain = re.sub(r"\\(?:text|begin|end)\{[^{}]*\}|\\[A-Za-z]+", lambda match: "#" * len(match.group()), gold)
    places = {
        "digit": [i for i, c in enumerate(gold) if c.isdigit()],
        "sign": [i for i, c in enumerate(plain) if c in "+-"],
        "letter": [i for i, c in enumerate(plain) if c.isalpha()],
        "bracket": [i for i, c in enumerate(plain) if c in "()[]"],
    }
    turned = str.maketrans("()[]+-", "[](" + ")-+")
    found = {}
    for kind, where in places.items():
        if where:
            i = draw.choice(where)
            other = gold[i].translate(turned)
            if kind == "digit":
                other = str((int(gold[i]) + draw.randint(1, 8)) % 10)
            if kind == "letter":
                other = draw.choice([c for c in "bdghmpquvwz" if c != gold[i].lower()])
            found[kind] = gold[:i] + other + gold[i + 1 :]
    if re.search(r"\\text\{ ?(?:cm|feet|days|inches|hours|dollars)", gold):
        found["unit"] = re.sub(r"\\text\{ ?(?:cm|feet|days|inches|hours|dollars)", r"\\text{ kilograms", gold, count=1)
    return found


def test_voting_among_hostile_answers_is_bounded(grader):
    """Nested sets and long answers, which once took minutes, are only equal to themselves."""
    answers = [f"\\boxed{{{chr(92)}{{{n},{'{1,2},' * 250}{chr(92)}}}}}" for n in range(24)]
    grades = grader.grade(["7"] * 24, answers, [False] * 24)
    began = time.process_time()
    (votes,) = grader.votes([grades])
    assert time.process_time() - began < 2.0
    assert len(set(votes)) == len({grade.answer for grade in grades})


EXEMPT = {
    "zero has no sign": lambda gold, other: (
        re.sub(r"[-+](?=0(?![\d.]))", "", gold) == re.sub(r"[-+](?=0(?![\d.]))", "", other)
    ),
    "a unit that is any unit": lambda gold, other: "unit" in gold,
}


@pytest.mark.slow
def test_a_gold_with_one_thing_changed_is_another_answer(grader, shared_data):
    lines = (shared_data / "math/math_train_12k.jsonl").read_text().splitlines()
    golds = list(dict.fromkeys(json.loads(line)["answer"] for line in lines))
    draw = random.Random(0)
    golds = [gold for gold in golds if 0 < len(gold) < 120 and not gold.lstrip("-").isdigit()]
    golds = draw.sample(golds, 1000)
    pairs = [(gold, kind, other) for gold in golds for kind, other in changed(gold, draw).items()]
    assert len(pairs) > 1500 and {kind for _, kind, _ in pairs} == {"digit", "sign", "letter", "bracket", "unit"}
    golds, answers = [gold for gold, _, _ in pairs], [f"\\boxed{{{other}}}" for _, _, other in pairs]
    grades = grader.grade(golds, answers, [False] * len(pairs))
    accepted = [pair for pair, grade in zip(pairs, grades, strict=True) if grade.verdict is CORRECT]
    assert [(g, k, o) for g, k, o in accepted if not any(rule(g, o) for rule in EXEMPT.values())] == []


@pytest.mark.parametrize(
    "ending",
    [
        r"is \{9}.",
        "isboxed{9}.",
        "isboxed{9",
        "is{{9}.",
        r"\ is{9}.",
        r"\{9}.",
        r"\ \{9}.",
        "is 9}.",
        r"is \fra{9}{1",
        "is box{9}.",
    ],
)
def test_what_is_left_of_a_box_or_a_formula_is_no_answer(grader, ending):
    """Found in the completions of a small model: paid for these, it unlearned the box that its prompt asks for."""
    (grade,) = grader.grade(["9"], [f"7+2=9. The answer is {ending}"], [False])
    assert grade.verdict == Verdict.UNPARSED


@pytest.mark.parametrize("text", [r"\left\{1, 2\right\}", r"\{1, 2\}", r"$\{1,2\}$.", r"the set {1, 2}"])
def test_braces_that_have_their_partner_are_read(grader, text):
    (grade,) = grader.grade([r"\{1, 2\}"], [f"The answer is {text}"], [False])
    assert grade.verdict == Verdict.CORRECT
