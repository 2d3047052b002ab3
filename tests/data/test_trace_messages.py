"""What stands beside a question and its answer is part of the row, or a fault of the row that names it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.traces.messages import NOT_SHOWN, ROLES, THOUGHTS, ShapeError
from posttrain.data.traces.shapes import Shape, read_trace

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
PAIR = {"question": "q", "response": "r"}
THOUGHT = "<think>\nt\n</think>\n\nr"


def trace(record: dict, shape: Shape = Shape()):  # noqa: B008
    return read_trace(json.dumps(record).encode(), shape)


def shown(record: dict) -> str:
    """Roles and texts of a row, in one line each."""
    found = trace(record)
    return "|".join([*(f"{m['role']}:{m['content']}" for m in found.prompt), found.response])


@pytest.mark.parametrize("name", THOUGHTS)
def test_a_thought_in_a_field_of_its_own_stands_before_the_answer(name):
    assert shown({"messages": [USER, ANSWER | {name: "t"}]}) == f"user:q|{THOUGHT}"
    assert shown(PAIR | {name: " t\n"}) == f"user:q|{THOUGHT}"
    assert shown({"instruction": "q", "input": "", "output": "r", name: "t"}) == f"user:q|{THOUGHT}"
    assert shown({"messages": [USER, {"role": "assistant", "content": None, name: "t"}]}) == (
        "user:q|<think>\nt\n</think>\n\n"
    )
    assert shown({"messages": [USER, ANSWER | {name: None}]}) == "user:q|r"
    assert shown(PAIR | {name: "on"}) == "user:q|r"  # how hard to think
    assert shown(PAIR | {"response": THOUGHT, name: "t"}) == f"user:q|{THOUGHT}"
    with pytest.raises(ShapeError, match="a thought in a field of its own and another"):
        shown(PAIR | {"response": THOUGHT, name: "u"})


def test_equal_thoughts_are_one_and_different_ones_are_a_fault():
    assert shown(PAIR | {"reasoning": "t", "reasoning_content": "t"}) == f"user:q|{THOUGHT}"
    with pytest.raises(ShapeError, match="different thoughts in the fields 'reasoning_content', 'reasoning'"):
        shown(PAIR | {"reasoning": "t", "reasoning_content": "u"})


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_instructions_in_a_column_come_first(name):
    assert shown(PAIR | {name: "s"}) == "system:s|user:q|r"
    assert shown({"messages": [USER, ANSWER], name: "s"}) == "system:s|user:q|r"
    assert shown({"instruction": "q", "input": "", "output": "r", name: "s"}) == "system:s|user:q|r"
    assert shown({"prompt": [USER], "response": "r", name: "s"}) == "system:s|user:q|r"
    assert shown({"messages": [{"role": "system", "content": "s"}, USER, ANSWER], name: "s"}) == "system:s|user:q|r"
    for empty in ("", " ", None):
        assert shown(PAIR | {name: empty}) == "user:q|r"
    with pytest.raises(ShapeError, match="others in the conversation"):
        shown({"messages": [{"role": "system", "content": "z"}, USER, ANSWER], name: "s"})


EARLIER = [[["a", "b"]], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '[["a", "b"]]']


@pytest.mark.parametrize("history", EARLIER)
def test_earlier_turns_in_a_column_come_before_the_question(history):
    assert shown(PAIR | {"history": history, "system": "s"}) == "system:s|user:a|assistant:b|user:q|r"
    assert shown({"instruction": "q", "input": "", "output": "r", "history": history}).startswith("user:a|assistant:b|")


@pytest.mark.parametrize("history", ["text", [["a"]], [["a", 1]], {"a": 1}, [1], ["a", "b"]])
def test_earlier_turns_that_are_none_are_a_fault_that_names_the_column(history):
    with pytest.raises(ShapeError, match=r"'history'|conversation"):
        shown(PAIR | {"history": history})


@pytest.mark.parametrize("name", NOT_SHOWN)
def test_what_no_prompt_shows_is_a_fault_that_names_it(name):
    for record in (
        PAIR | {name: [{"x": 1}]},
        {"messages": [USER, ANSWER | {name: {"x": 1}}]},
        PAIR | {name: '[{"x":1}]'},
    ):
        with pytest.raises(ShapeError, match=f"'{name}' is not empty"):
            shown(record)
    for empty in (None, [], {}, "", "[]"):
        assert shown(PAIR | {name: empty}) == "user:q|r"


@pytest.mark.parametrize("role", [*ROLES, "User", "SYSTEM", "ChatGPT"])
def test_other_spellings_of_roles(role):
    kind = ROLES[role.casefold()]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    if kind == "system":
        messages.insert(0, {"role": role, "content": "s"})
    else:
        messages[0 if kind == "user" else 1]["role"] = role
    assert shown({"messages": messages}).endswith("user:q|r")
    with pytest.raises(ShapeError, match="a message of role 'tool'; known are"):
        shown({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]})


def test_content_in_parts_is_joined_and_a_part_that_is_no_text_is_named():
    parts = [{"type": "text", "text": "q1 "}, {"type": "input_text", "text": "q2"}, " q3"]
    answer = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "r"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    assert shown({"messages": messages}) == f"user:q1 q2 q3|{THOUGHT}"
    assert shown({"prompt": messages[:1], "completion": messages[1:]}) == f"user:q1 q2 q3|{THOUGHT}"
    for part in ({"type": "image_url", "image_url": "x"}, {"type": "text"}, 3, {"text": None}):
        with pytest.raises(ShapeError, match="content with a part of type"):
            shown({"messages": [{"role": "user", "content": [part]}, ANSWER]})


def test_a_column_that_is_named_is_the_gold_even_where_it_is_the_response():
    """A table of questions and short answers, whose response a template writes."""
    shape = Shape(response_template="The answer is \\boxed{{answer}}.", gold_column="answer")
    found = trace({"question": "What is 3 + 4?", "answer": "7"}, shape)
    assert (found.response, found.gold) == ("The answer is \\boxed{7}.", "7")
    assert trace({"question": "q", "answer": "3 + 4 = 7\n#### 7"}, Shape(gold_column="answer")).gold == "7"
    assert trace({"question": "q", "answer": "7"}).gold is None


def test_golds_of_every_form_and_below_other_columns():
    assert trace(PAIR | {"answer": {"value": "16"}}, Shape(gold_column="answer.value")).gold == "16"
    assert trace(PAIR | {"a.b": "3", "a": {"b": "4"}}, Shape(gold_column="a.b")).gold == "3"
    assert trace(PAIR | {"meta": {"rate": 0.5}}, Shape(rate_column="meta.rate")).rate == 0.5
    bare = trace({"question": "q", "answer": "5"}, Shape(None, "It is \\boxed{{answer}}.", "answer"))
    assert (bare.response, bare.gold) == ("It is \\boxed{5}.", "5")
    found = trace(PAIR | {"answer": {"value": "16"}})
    assert found.gold is None and "an object with the fields value" in found.gold_fault
    assert (
        "nothing in 'golds'; the columns are question, response" in trace(PAIR, Shape(gold_column="golds")).gold_fault
    )
    assert trace(PAIR | {"answer": "He adds 5+8=<<5+8=13>>13.\n#### 13"}).gold == "13"
    assert trace({"question": "q", "answer": "so 1,234\n#### 1,234"}).gold == "1234"


def test_columns_that_may_matter_and_are_not_read_are_named():
    record = {"messages": [USER, ANSWER], "problem": "p", "solution": "s", "answer": "1", "problem_id": "x", "url": "u"}
    assert trace(record).unread == ("problem", "solution")
    assert trace(PAIR | {"context": "c", "image": "", "loss_weight": 0.5, "prompt_tokens": 7}).unread == (
        "context", "loss_weight",
    )  # fmt: skip
    assert trace(PAIR | {"system": "s", "history": [["a", "b"]], "reasoning": "off", "answer": "1"}).unread == ()
    assert trace({"text": "p", "label": "l"}, Shape("{text}", "{label}")).unread == ()


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_beyond_any_measure_are_bounded(digits):
    line = f'{{"question": "q", "response": "r", "answer": {"1" * digits}, "rate": {"1" * digits}}}'.encode()
    found = read_trace(line, Shape(rate_column="rate"))
    assert found.rate is None
    assert found.gold is None and found.gold_fault
    assert trace(PAIR | {"answer": "1" * 400}).gold == "1" * 400
    assert "more than 2000" in trace(PAIR | {"answer": "1" * 5000}).gold_fault


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**30) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["\ud800", "#### 1", "<think>", "[{", '[["a","b"]]', "\x1b[31m", "on"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "type", "text", "thinking", "x"]), inner),
    max_leaves=8,
)  # fmt: skip
COLUMNS = st.sampled_from([
    "messages", "conversations", "prompt", "completion", "response", "question", "answer", "gold", "instruction",
    "input", "output", "system", "history", "tools", "reasoning", "reward_model", "source", "rate", "\ud800", "\x1b[0m",
])  # fmt: skip


ROWS = st.dictionaries(COLUMNS, ODD, max_size=6)


def is_trace_or_fault(record: dict) -> None:
    try:
        found = trace(record, Shape(rate_column="rate"))
    except ShapeError:
        return
    assert found.prompt[-1]["role"] == "user" and isinstance(found.response, str)
    assert all(isinstance(message["content"], str) for message in found.prompt)
    assert found.gold is None or 0 < len(found.gold) <= 2000


@settings(max_examples=400)
@given(record=ROWS)
def test_any_row_is_a_trace_or_a_named_fault(record):
    is_trace_or_fault(record)


@pytest.mark.exhaustive
@settings(max_examples=50_000)
@given(record=ROWS)
def test_any_row_of_fifty_thousand_is_a_trace_or_a_named_fault(record):
    is_trace_or_fault(record)
