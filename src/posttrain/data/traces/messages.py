"""Conversations as other people write them: names of roles, content in parts, thoughts and instructions in fields.

What a prompt cannot show, such as tools or an image, is a fault that names its field, never left out.
"""

import json
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]
ROLES = {
    "human": "user", "user": "user", "prompter": "user", "system": "system", "developer": "system",
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatbot", "chatgpt", "ai"), "assistant"),
}  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
FLAGS = {"on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high"}  # how hard to think is no thought
SYSTEM = ("system", "system_prompt")
NOT_SHOWN = ("tools", "functions", "tool_calls", "function_call", "images", "audio", "videos")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text"}
THOUGHT_PARTS = {"thinking": "thinking", "reasoning": "text"}


class ShapeError(ValueError):
    """A row in which no question and response were found, or something that no prompt can show."""


def conversation(value: Any) -> list[Message]:
    """The messages of a list; raises ShapeError where any is not what it seems."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ShapeError("a conversation that is no list of messages")
    return [_message(message) for message in value]


def beside(record: Mapping[str, Any], messages: list[Message], read: set[str]) -> list[Message]:
    """The messages with what stands beside them: the response's thought, earlier turns, instructions.

    Columns that were looked at are added to `read`.
    """
    check_shown(record)
    if thought := _thought(record, read):
        messages = [*messages[:-1], with_thought(messages[-1], thought)]
    if history := decoded(record.get("history"), "["):
        read.add("history")
        messages = _after_instructions(_turns(history), messages)
    for name in SYSTEM:
        instructions = record.get(name)
        if not isinstance(instructions, str) or not instructions.strip():
            continue
        read.add(name)
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": instructions}, *messages]
        elif messages[0]["content"].strip() != instructions.strip():
            raise ShapeError(f"instructions in the column {name!r} and others in the conversation")
    return messages


def check_shown(fields: Mapping[str, Any]) -> None:
    """Raise ShapeError for a field that no prompt here can show."""
    for name in NOT_SHOWN:
        if name in fields and decoded(fields[name], "[{") not in (None, "", [], {}):
            raise ShapeError(f"the field {name!r} is not empty, and no prompt here shows it")


def with_thought(message: Message, thought: str) -> Message:
    """An answer after its thought, as templates of thinking models write both."""
    content = message["content"]
    if "</think>" not in content:
        return {**message, "content": f"<think>\n{thought.strip()}\n</think>\n\n{content}"}
    if thought.strip() in content:
        return message
    raise ShapeError("a thought in a field of its own and another one in the content")


def decoded(value: Any, start: str) -> Any:
    """A list or an object that a CSV cell holds as JSON text, which then has this start; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] and value.lstrip()[0] in start:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _message(message: dict[str, Any]) -> Message:
    check_shown(message)
    name = message.get("role", message.get("from"))
    role = ROLES.get(name.casefold()) if isinstance(name, str) else None
    if role is None:
        raise ShapeError(f"a message of role {str(name)[:40]!r}; known are {', '.join(ROLES)}")
    content, thought = _content(message.get("content", message.get("value", message.get("text"))))
    thought = thought or _thought(message, set())
    if content is None and not thought:
        raise ShapeError(f"a message of role {name!r} without text")
    found = {"role": role, "content": content or ""}
    return with_thought(found, thought) if thought else found


def _content(value: Any) -> tuple[str | None, str | None]:
    """The text of a message and its thought, of content that is text or a list of parts."""
    if not isinstance(value, list):
        return (value if isinstance(value, str) else None), None
    texts, thoughts = [], []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part if isinstance(part, str) else None
        for found, kinds in ((texts, TEXT_PARTS), (thoughts, THOUGHT_PARTS)):
            if isinstance(part, dict) and isinstance(kind, str) and kind in kinds:
                text = part.get(kinds[kind])
                if isinstance(text, str):
                    found.append(text)
        if isinstance(part, str):
            texts.append(part)
        if not isinstance(text, str):
            raise ShapeError(f"content with a part of type {str(kind)[:40]!r}, which no prompt here shows")
    return "".join(texts), "\n".join(thoughts) or None


def _thought(fields: Mapping[str, Any], read: set[str]) -> str | None:
    """The thought in a field of its own; fields of equal thoughts are one."""
    found: dict[str, str] = {}
    for name in THOUGHTS:
        text, _ = _content(fields.get(name))
        if text is not None and text.strip():
            read.add(name)
            if text.strip().casefold() not in FLAGS:
                found.setdefault(text.strip(), name)
    if len(found) > 1:
        raise ShapeError(f"different thoughts in the fields {', '.join(map(repr, found.values()))}")
    return next(iter(found), None)


def _turns(history: Any) -> list[Message]:
    """Earlier turns: messages, or pairs of a question and its answer."""
    if not isinstance(history, list):
        raise ShapeError("earlier turns in the column 'history' that are no list")
    if all(isinstance(turn, dict) for turn in history):
        return conversation(history)
    if not all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in history):
        raise ShapeError("earlier turns in the column 'history' that are neither messages nor pairs of texts")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in history for role, text in zip(roles, turn, strict=True)]


def _after_instructions(earlier: list[Message], messages: list[Message]) -> list[Message]:
    first = 1 if messages[0]["role"] == "system" else 0
    return [*messages[:first], *earlier, *messages[first:]]
