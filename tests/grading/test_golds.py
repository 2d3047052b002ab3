"""Golds as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading.reading.golds import GoldError, gold_at, read_gold


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("13", "13"),
        (13, "13"),
        (0.5, "0.5"),
        (Decimal("0.50"), "0.50"),
        (["15"], "15"),
        ("['15']", "15"),
        ('["15"]', "15"),
        (["2", 3], "2, 3"),
        ([["2"]], "2"),
        ("**17**", "17"),
        ("The answer is 14.", "14"),
        ("Answer: 13", "13"),
        ("He adds 5+8=13.\n#### 13", "13"),
        ("He adds 5+8=<<5+8=13>>13. #### 13", "13"),
        ("#### 1,300", "1,300"),
        (r"So $x = 3$ and the answer is \boxed{12}.", "12"),
        (r"\(\boxed{5 \text{ and } 9}\)", r"5 \text{ and } 9"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"so \boxed{x = 1", "x = 1"),
        ("(1,2)", "(1,2)"),
        ("[1,2]", "[1,2]"),
        ("A:B=1", "A:B=1"),
        ("A: 3", "A: 3"),
        ("13 hens", "13 hens"),
        (r"\text{Monday}", r"\text{Monday}"),
    ],
)
def test_the_answer_that_a_gold_states(gold, expected):
    assert read_gold(gold) == expected
    assert read_gold(read_gold(gold)) == expected


@pytest.mark.parametrize("gold", [None, True, "", " \n", [], [None], {"value": "16"}, float("nan"), object()])
def test_a_value_that_states_none_says_what_it_is(gold):
    with pytest.raises(GoldError, match="expected a gold"):
        read_gold(gold)


def test_an_object_names_its_fields():
    with pytest.raises(GoldError, match="value, unit"):
        read_gold({"value": "16", "unit": "cm"})


def test_a_nested_column():
    record = {"reward_model": {"ground_truth": "7", "style": "rule"}, "a.b": 1, "a": {"b": 2}}
    assert gold_at(record, "reward_model.ground_truth") == "7"
    assert gold_at(record, "a.b") == 1
    assert gold_at(record, "a.c") is gold_at(record, "reward_model.ground_truth.x") is gold_at(record, "z") is None


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        assert read_gold(text)
    except GoldError:
        assert True


def test_an_integer_too_long_to_print():
    with pytest.raises(GoldError, match="found an integer"):
        read_gold(10**5000)
