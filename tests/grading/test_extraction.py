"""Which part of a completion is its answer."""

import time

import pytest

from posttrain.grading.reading.extract import extract_answer, has_box


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{13}. Wait, \boxed{12}", "12"),  # the last box counts
        (r"\boxed{12} then \boxed{1", None),  # one that never closes is no answer, whatever stands before
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed {7}", "7"),
        (r"\boxed 8", "8"),
        (r"\fbox{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{}", None),
        ("work\n#### 1,234 \n", "1,234"),
        ("Options:\nA: 3\nB: 4\nThe answer is 4.", "4"),
        ("work\nA: 3\n", "3"),
        ("#### **72**", "72"),
        ("The answer is **42**.", "42"),
        ("**Answer: 42**", "42"),
        ("**Answer:** 42", "42"),
        ("**Answer:** D, it is so", "D"),
        ("**Answer**: 42", "42"),
        ("**The answer is 42.** That is all.", "42"),
        ("The answer is 2**3.", "2**3"),
        ("The answer is 5. It was easy.", "5"),
        ("Answer: 3.5", "3.5"),
        (r"\boxed{1} </think> <answer> 7 </answer>", "7"),
        (r"</think> <answer> so \boxed{8} </answer>", "8"),
        (r"<answer>6</answer> no </think> the answer is 9", "9"),
        ("</think> <answer>The answer is 7</answer>", "7"),
        ("Final Answer: The final answer is $7$. I hope it is correct.", "7"),
        ("the answer is 5 or not. The answer is:", None),
        ("just words", None),
        ("", None),
        (r"\boxed{" * 300, None),
        (r"\boxed{" + "9" * 3000 + "}", None),
    ],
)
def test_extraction(completion, expected):
    assert extract_answer(completion) == expected


def test_the_format_is_a_complete_box():
    assert has_box(r"\boxed{1}")
    assert not has_box("#### 1")
    assert not has_box(r"\boxed{1")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"\boxed{(1, 5)} \quad \text{and} \quad \boxed{(3, 5)}", "(1, 5), (3, 5)"),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{4} and \boxed{4}", "4"),
        (r"\boxed{3}. Wait, \boxed{4}", "4"),
        (r"\boxed{3} is wrong and \boxed{4}", "4"),
        ("The answer: D, it does not matter", "D"),
    ],
)
def test_boxes_side_by_side_are_a_list(completion, expected):
    assert extract_answer(completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("2 500", "2 500"),
        (r"-\frac{11}{7}", r"-\frac{11}{7}"),
        (".4", ".4"),
        ("so it costs 3,85 euro", "3.85"),
        ("The volume of $ABCD$ is 120", "120"),
        ("so $x=1$ after 2 steps", "x=1"),
        ("The difference is $d = 90/n$. Therefore, there are 12 of them.", "12"),
        (r"\boxed{255}, and 10,200 with it. The final answer is $10,455$.", "10,455"),
        (r"The answer is $\boxed{255}$. I hope that this answer is correct.", "255"),
        (r"\boxed{255}. The answer is right.", "255"),
        ("$1$, $2$ and $3$", "1, 2, 3"),
        ("QX2B has no answer", None),
    ],
)
def test_lenient_extraction(completion, expected):
    assert extract_answer(completion, lenient=True) == expected


@pytest.mark.parametrize("piece", [r"\(", r"\[", "$", "answer is ", r"\boxed{1} and ", "\n####", "</think>", "1,", " "])
def test_extraction_is_linear(piece):
    """Of the longest region that is looked at: milliseconds of processor time, where a backtracking pattern takes ten
    seconds.
    """
    text = piece * (70_000 // len(piece))
    began = time.process_time()
    for completion in (text, text + r"\boxed{2}"):
        for lenient in (False, True):
            extract_answer(completion, lenient)
    assert time.process_time() - began < 5.0  # far from both
