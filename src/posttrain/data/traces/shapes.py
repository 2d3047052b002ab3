"""Rows of other people's datasets as question, response and gold answer, whatever their columns are called."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.traces.messages import Message, ShapeError, beside, conversation, decoded
from posttrain.grading.reading.golds import GSM8K, GoldError, gold_at, read_gold

CONVERSATIONS = ("messages", "conversations", "conversation")
ALPACA = ("instruction", "input", "output")  # before the pairs: input/output would lose the instruction
# Tried in this order; the first pair whose columns both hold something is the row.
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("input", "output"),
    ("problem", "generated_solution"), ("problem", "solution"), ("question", "response"), ("question", "solution"),
    ("question", "answer"), ("instruction", "completion"), ("instruction", "response"), ("user", "assistant"),
    ("human", "gpt"), ("instruction", "output"), ("query", "response"), ("question", "generation"),
)  # fmt: skip
GOLDS = ("gold", "expected_answer", "ground_truth", "final_answer", "answer", "reward_model.ground_truth")
LONGEST_GOLD = 2000  # characters; no answer that is found in a response is longer
SOURCES = ("source", "problem_source", "dataset")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
# A column of such a name may be part of the question or the answer.
MATTERS = re.compile(
    r"system|prompt|instruct|context|history|passage|document|demonstration|shot|problem|question|query|message|"
    r"conversation|turns|dialog|think|thought|reason|rationale|cot\b|chain|answer|gold|truth|label|solution|response|"
    r"completion|output|input|generation|tool|function|image|audio|video|choices|options|chosen|rejected",
    re.IGNORECASE,
)
WEIGHT = re.compile("weight|mask", re.IGNORECASE)  # which numbers, too, may say
ABOUT = re.compile("(id|type|source|level|index|count|tokens|length|hash|date|url|name|model|score)$", re.IGNORECASE)


@dataclass(frozen=True)
class Trace:
    """One question with one response; `gold` and `source` are None where the row names none.

    `gold_fault` says what is wrong with a gold that is there; `unread` are columns that hold something, may matter and
    were not read.
    """

    prompt: list[Message]
    response: str
    gold: str | None
    source: str | None
    rate: float | None
    gold_fault: str | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """How to read rows beyond the spellings above.

    A template is text with `{column}` in it; `{prompt}` and `{response}` stand for what was found without it. The other
    two name a column, or a field of one: `reward_model.ground_truth`.
    """

    prompt_template: str | None = None
    response_template: str | None = None
    gold_column: str | None = None
    rate_column: str | None = None


def read_trace(line: bytes, shape: Shape) -> Trace:
    """The trace of a JSON line; raises ShapeError where there is none."""
    record = _record(line)
    read: set[str] = set()
    messages, response_column = _exchange(record, shape, read)
    messages = beside(record, messages, read)
    response = messages[-1]["content"]
    known = {**record, "prompt": messages[-2]["content"] if len(messages) > 1 else "", "response": response}
    if shape.prompt_template is not None:
        messages[-2:-1] = [_user(_fill(shape.prompt_template, known))]
        read.update(PLACEHOLDER.findall(shape.prompt_template))
    if shape.response_template is not None:
        response = _fill(shape.response_template, known)
        read.update(PLACEHOLDER.findall(shape.response_template))
    gold, fault = _gold(record, response, response_column, shape, read)
    return Trace(
        prompt=messages[:-1],
        response=response,
        gold=gold,
        source=next((record[name] for name in SOURCES if isinstance(record.get(name), str) and record[name]), None),
        rate=_number(gold_at(record, shape.rate_column)) if shape.rate_column else None,
        gold_fault=fault,
        unread=tuple(name for name in record if name not in read and _matters(name, record[name])),
    )


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except RecursionError:
        raise ShapeError("nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise ShapeError(f"not JSON: {error}") from None
        record = json.loads(line, parse_int=str)  # an integer of thousands of digits
    if not isinstance(record, dict):
        raise ShapeError(f"expected a JSON object, found {type(record).__name__}")
    return record


def _exchange(record: dict[str, Any], shape: Shape, read: set[str]) -> tuple[list[Message], str | None]:
    """Messages that end with the response, and the column it came from."""
    for name in CONVERSATIONS:
        if record.get(name):
            read.add(name)
            return _ended(conversation(decoded(record[name], "["))), name
    instruction, context, output = (record.get(name) for name in ALPACA)
    if _is_text(instruction) and isinstance(context, str) and _is_text(output):
        read.update(ALPACA)
        question = f"{instruction}\n\n输入: {context}" if context.strip() else instruction
        return [_user(question), _assistant(output)], "output"
    for names in PAIRS:
        question, response = _messages(record.get(names[0]), "user"), _messages(record.get(names[1]), "assistant")
        if question and response:
            read.update(names)
            return _ended([*question, *response]), names[1]
    if shape.prompt_template is not None and shape.response_template is not None:
        return [_user(""), _assistant("")], None
    raise ShapeError(f"no known pair of question and response among the columns {', '.join(map(str, record))[:200]}")


def _messages(value: Any, role: str) -> list[Message] | None:
    """One side of a pair: messages, or text, of which a response may be blank; None where it is neither."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[ "):  # a question, too, may start with "["
        value = decoded(value, "[")
    if isinstance(value, list):
        return conversation(value) if value and all(isinstance(message, dict) for message in value) else None
    if _is_text(value) or (role == "assistant" and isinstance(value, str)):
        return [{"role": role, "content": value}]
    return None


def _ended(messages: list[Message]) -> list[Message]:
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        raise ShapeError("a conversation that does not end with a question and its answer")
    return messages


def _gold(
    record: Mapping[str, Any], response: str, response_column: str | None, shape: Shape, read: set[str]
) -> tuple[str | None, str | None]:
    """Gold as text: of the named column, else the first known one that is not the response, else GSM8K's end of it.

    And what is wrong with the first one that is there.
    """
    fault = None
    for name in (shape.gold_column,) if shape.gold_column else GOLDS:
        value = gold_at(record, name)
        taken = name == response_column and shape.gold_column is None  # a column that is named is the gold in any case
        if taken or value is None or isinstance(value, bool) or value in ("", []):
            continue
        read.update((name, name.partition(".")[0]))
        try:
            if len(gold := read_gold(value)) <= LONGEST_GOLD:
                return gold, None
            fault = fault or f"{name}: a gold of {len(gold)} characters, more than {LONGEST_GOLD}"
        except (GoldError, RecursionError) as error:
            fault = fault or f"{name}: {error or 'nested too deeply'}"
    if shape.gold_column and fault is None and gold_at(record, shape.gold_column) is None:
        fault = f"nothing in {shape.gold_column!r}; the columns are {', '.join(map(str, record))[:200]}"
    if shape.gold_column is None and response_column == "answer" and GSM8K in response:
        return response.rpartition(GSM8K)[2].strip().replace(",", "")[:LONGEST_GOLD] or None, fault
    return None, fault


def _fill(template: str, values: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        found = values.get(match.group(1))
        if not isinstance(found, str | int | float):
            raise ShapeError(f"the template names {{{match.group(1)}}}, which this row does not hold")
        return str(found)

    return PLACEHOLDER.sub(value, template)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _matters(name: str, value: Any) -> bool:
    if not value or isinstance(value, bool) or ABOUT.search(name):
        return False
    return bool(WEIGHT.search(name) or (isinstance(value, str | list | dict) and MATTERS.search(name)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
