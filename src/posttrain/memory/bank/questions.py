"""Questions about facts, and where a knowledge bank holds the fact that answers each."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.data.json_text import ROW_BYTES, JsonText
from posttrain.data.rows import row_id
from posttrain.data.sources.omcq import conversation, stream_items
from posttrain.data.traces.shapes import Shape, ShapeError, read_trace
from posttrain.errors import PosttrainError

OPTION = re.compile(r"([A-Z]):(.*)", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
NEXT_OPTION = re.compile(r",(?=[A-Z]:)")


@dataclass(frozen=True)
class Question:
    """One question. `choices` are possible answers as they would be given, the true one among them, or none."""

    id: str
    content: str
    answer: str
    choices: list[str] = field(default_factory=list)
    uuid: str = ""

    def as_row(self, answer: str | None = None) -> dict[str, Any]:
        """The question as a dataset's row, with another answer if one is given."""
        return as_row(self.id, self.content, self.answer if answer is None else answer)


@dataclass(frozen=True)
class Fact:
    """Where the bank holds a question's fact; `row` is -1 where it does not."""

    row: int = -1
    sentence: str = ""
    subject: str = ""
    object: str = ""


def as_row(id: str, content: str, answer: str) -> dict[str, Any]:
    return {
        "id": id,
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def read_questions(path: Path) -> Iterator[Question]:
    """Questions of a JSON array of OMCQ items, or conversations of JSON Lines; raises for one that is neither."""
    if not path.is_file():
        raise PosttrainError(f"{path}: missing; write it with data_prep/omcq.py")
    if path.suffix == ".json":
        for number, item in enumerate(stream_items(path), start=1):
            if (question := question_of(item)) is None:
                raise PosttrainError(f"{path}: item {number}: expected a target with question and correct_answer")
            yield question
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _conversation_question(line, f"{path}:{number}")


def question_of(item: Any) -> Question | None:
    """The question of an OMCQ item; without options the question alone is asked, and the choices are plain objects."""
    targets = item.get("target") if isinstance(item, dict) else None
    target = targets[0] if isinstance(targets, list) and targets and isinstance(targets[0], dict) else {}
    asked, answer, options = (target.get(key) for key in ("question", "correct_answer", "options"))
    listed = target.get("choices") or []
    if not isinstance(listed, list) or not all(map(_is_text, (asked, answer, options or "", *map(str, listed)))):
        return None
    if not asked or not answer:
        return None
    content = asked
    choices = [str(choice) for choice in listed]
    if options:
        turns = conversation(item)
        content = turns["conversations"][0]["content"] if turns else asked
        letters = [f"{chr(ord('A') + i)}:{choice}" for i, choice in enumerate(choices)]
        choices = letters or NEXT_OPTION.split(options)
    return Question(row_id(content, answer), content, answer, choices, str(target.get("uuid") or ""))


def _is_text(value: Any) -> bool:
    """Whether a value of JSON is text that can be written: not half a surrogate pair."""
    return isinstance(value, str) and not SURROGATE.search(value)


def _conversation_question(line: bytes, where: str) -> Question:
    try:
        trace = read_trace(line, Shape())
    except ShapeError as error:
        raise PosttrainError(f"{where}: {error}") from error
    content, answer = trace.prompt[-1]["content"], trace.response
    return Question(row_id(content, answer), content, answer, uuid=str(json.loads(line).get("uuid") or ""))


def facts_by_uuid(mapping: Path, uuids: set[str]) -> dict[str, Fact]:
    """The bank's facts that are asked for, from its mapping, which is read piece by piece."""
    facts: dict[str, Fact] = {}
    for uuid, fact in mapping_facts(mapping):
        if uuid in uuids and uuid:
            facts.setdefault(uuid, fact)
    return facts


def mapping_facts(mapping: Path) -> Iterator[tuple[str, Fact]]:
    """Every fact of a bank with its uuid."""
    try:
        with mapping.open("rb") as file:
            for entry in _mapping_entries(JsonText(file, ROW_BYTES)):
                fact = Fact(entry["database_index"], entry["sentence"], entry["subject"], entry["object"])
                yield entry["uuid"], fact
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PosttrainError(f"{mapping}: not the mapping of a bank ({error}); build it again") from error


def _mapping_entries(text: JsonText) -> Iterator[Any]:
    for key in text.fields():
        if key == "mappings":
            yield from map(json.loads, text.items())
        else:
            text.value()
    text.end()


def option_object(choice: str) -> str:
    """What an answer names, without its letter: `A:language family` → `language family`."""
    match = OPTION.fullmatch(choice)
    return match.group(2) if match else choice


def with_object(fact: Fact, object_: str) -> str | None:
    """The fact's sentence about another object, or None where its own does not stand in it beside the subject."""
    before, subject, after = fact.sentence.partition(fact.subject) if fact.subject else ("", "", fact.sentence)
    if not fact.object or fact.object not in before + "\0" + after:
        return None
    return before.replace(fact.object, object_) + subject + after.replace(fact.object, object_)
