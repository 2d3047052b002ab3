"""Rows of other people's datasets as question, response and gold answer, whatever their columns are called."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
CONVERSATIONS = ("messages", "conversations", "conversation")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ALPACA = ("instruction", "input", "output")  # before the pairs: input/output would lose the instruction
# Tried in this order; the first pair whose columns both hold something is the row.
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("input", "output"),
    ("problem", "generated_solution"), ("problem", "solution"), ("question", "response"), ("question", "solution"),
    ("question", "answer"), ("instruction", "completion"), ("instruction", "response"), ("user", "assistant"),
    ("human", "gpt"), ("instruction", "output"), ("query", "response"), ("question", "generation"),
)  # fmt: skip
GOLDS = ("gold", "expected_answer", "ground_truth", "final_answer", "answer")
SOURCES = ("source", "problem_source", "dataset")
GSM8K_GOLD = "####"
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class ShapeError(ValueError):
    """A row in which no question and response were found."""


@dataclass(frozen=True)
class Trace:
    """One question with one response; `gold` and `source` are None where the row names none."""

    prompt: list[Message]
    response: str
    gold: str | None
    source: str | None
    rate: float | None


@dataclass(frozen=True)
class Shape:
    """How to read rows beyond the spellings above.

    A template is text with `{column}` in it; `{prompt}` and `{response}` stand for what was found without it.
    """

    prompt_template: str | None = None
    response_template: str | None = None
    gold_column: str | None = None
    rate_column: str | None = None


def read_trace(line: bytes, shape: Shape) -> Trace:
    """The trace of a JSON line; raises ShapeError where there is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ShapeError("nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise ShapeError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ShapeError(f"expected a JSON object, found {type(record).__name__}")
    messages, response_column = _exchange(record, shape)
    response = messages[-1]["content"]
    known = {**record, "prompt": messages[-2]["content"] if len(messages) > 1 else "", "response": response}
    if shape.prompt_template is not None:
        messages[-2:-1] = [{"role": "user", "content": _fill(shape.prompt_template, known)}]
    if shape.response_template is not None:
        response = _fill(shape.response_template, known)
    return Trace(
        prompt=messages[:-1],
        response=response,
        gold=_gold(record, response, response_column, shape),
        source=next((record[name] for name in SOURCES if isinstance(record.get(name), str) and record[name]), None),
        rate=_number(record.get(shape.rate_column)) if shape.rate_column else None,
    )


def _exchange(record: dict[str, Any], shape: Shape) -> tuple[list[Message], str | None]:
    """Messages that end with the response, and the column it came from."""
    for name in CONVERSATIONS:
        if record.get(name):
            return _conversation(record[name]), name
    instruction, context, output = (record.get(name) for name in ALPACA)
    if _is_text(instruction) and isinstance(context, str) and _is_text(output):
        question = f"{instruction}\n\n输入: {context}" if context.strip() else instruction
        return [_user(question), _assistant(output)], "output"
    for question_name, response_name in PAIRS:
        question, response = _decoded(record.get(question_name)), _decoded(record.get(response_name))
        if isinstance(question, list) and isinstance(response, list) and question and response:
            return _conversation([*question, *response]), response_name
        if _is_text(question) and isinstance(response, str):
            return [_user(question), _assistant(response)], response_name
    if shape.prompt_template is not None and shape.response_template is not None:
        return [_user(""), _assistant("")], None
    raise ShapeError(f"no known pair of question and response among the columns {', '.join(map(str, record))[:200]}")


def _conversation(value: Any) -> list[Message]:
    value = _decoded(value)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ShapeError("a conversation that is no list of messages")
    messages = []
    for message in value:
        role = ROLES.get(str(message.get("role", message.get("from"))))
        content = message.get("content", message.get("value"))
        if role is None or not isinstance(content, str):
            raise ShapeError(f"a message of role {message.get('role', message.get('from'))!r} without text or role")
        messages.append({"role": role, "content": content})
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        raise ShapeError("a conversation that does not end with a question and its answer")
    return messages


def _gold(record: dict[str, Any], response: str, response_column: str | None, shape: Shape) -> str | None:
    """Gold as text: the named column, else the first known one that is not the response, else GSM8K's end of it."""
    for name in (shape.gold_column,) if shape.gold_column else GOLDS:
        value = record.get(name)
        if name == response_column or value is None or isinstance(value, bool):
            continue
        if isinstance(value, str | int | float):
            return str(value).strip() or None
    if shape.gold_column is None and response_column == "answer" and GSM8K_GOLD in response:
        return response.rpartition(GSM8K_GOLD)[2].strip().replace(",", "") or None
    return None


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
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _decoded(value: Any) -> Any:
    """A list that a CSV cell holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[ "):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
