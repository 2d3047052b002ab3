"""The generator: true solutions, disjoint splits, numbers in range."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.sources.tiny_world import LARGE_RANGE, LEVELS, RANGE, draw_problem, problem_splits, text_splits
from posttrain.grading.reading.extract import extract_answer
from posttrain.grading.values.exact import equal


@given(st.integers(0, 10**6), st.sampled_from(LEVELS), st.sampled_from([RANGE, LARGE_RANGE]))
def test_every_problem_is_solved_by_its_solution(seed, level, bounds):
    problem = draw_problem(random.Random(seed), level, *bounds)
    assert len(problem.steps) == level
    assert all(bounds[0] <= value <= bounds[1] for value in problem.values)
    for equation in problem.equations:
        left, right = equation.removesuffix(".").split("=")
        assert eval(left) == int(right)  # our own arithmetic, checked by Python's
    assert equal(str(problem.values[-1]), extract_answer(problem.solution) or "") is True
    assert "\\boxed" not in problem.plain_text


@pytest.fixture(scope="module")
def splits():
    return problem_splits(seed=0, n_train=300, n_test=40)


def test_no_question_stands_in_two_splits(splits):
    questions = [row.prompt[0]["content"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions) == 300 + 6 * 40


def test_the_large_set_shares_no_number_range_with_training(splits):
    def equations(split):
        return [int(n) for row in splits[split] for n in re.findall(r"=(\d+)", row.completion[0]["content"])]

    assert max(equations("train")) <= RANGE[1] < LARGE_RANGE[0] <= min(equations("test_large"))


def test_all_operations_and_levels_occur(splits):
    text = " ".join(row.completion[0]["content"] for row in splits["train"])
    assert all(operator in text for operator in "+-*/")
    assert {row.source for row in splits["train"]} == {f"tiny_world/{level}step" for level in LEVELS}


def test_plain_text_holds_no_held_out_question(splits):
    held_out = {row.prompt[0]["content"] for split, rows in splits.items() if split != "train" for row in rows}
    text = text_splits(seed=0, n_lines=3000, held_out=held_out)
    assert not any(question in row.text for rows in text.values() for row in rows for question in held_out)


def test_the_same_seed_gives_the_same_rows():
    assert problem_splits(3, 20, 5) == problem_splits(3, 20, 5) != problem_splits(4, 20, 5)
