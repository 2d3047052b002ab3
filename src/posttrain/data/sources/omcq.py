"""Multiple-choice questions about facts (OMCQ): conversations of them, and questions made from triples.

A question is `{"target": [{"question", "options": "A:…,B:…", "correct_answer": "A:…", "uuid"}]}`. As an object may
hold a comma, questions made here also keep their `choices` as a list.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from posttrain import atomic
from posttrain.data.json_text import ROW_BYTES, JsonText
from posttrain.data.records import Record, SourceError
from posttrain.errors import PosttrainError

FIELDS = ("question", "options", "correct_answer")
REQUEST = "请选择正确答案。"  # "choose the right answer", as the published conversations end their question
LETTERS = "ABCDE"
DEFAULT_QUESTION = "What is the {predicate} of {subject}?"


@dataclass(frozen=True)
class Triple:
    """A fact: subject, predicate (a name or a Wikidata property) and object."""

    subject: str
    predicate: str
    object: str
    uuid: str


def stream_items(path: Path) -> Iterator[Any]:
    """Items of a JSON array, one at a time, so that memory does not grow with the file; raises SourceError."""
    try:
        with path.open("rb") as file:
            text = JsonText(file, ROW_BYTES)
            yield from map(json.loads, text.items())
            text.end()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: expected a whole JSON array: {reason}") from error


def conversation(item: Any) -> dict[str, Any] | None:
    """The question and its answer as two turns, from the item's first target; None where a field is missing."""
    targets = item.get("target") if isinstance(item, dict) else None
    target = targets[0] if isinstance(targets, list) and targets else None
    if not isinstance(target, dict) or not all(isinstance(target.get(key), str) and target[key] for key in FIELDS):
        return None
    question, options, answer = (target[key] for key in FIELDS)
    return {
        "conversations": [
            {"role": "user", "content": f"{question}\n{options}\n{REQUEST}"},
            {"role": "assistant", "content": answer},
        ]
    }


def convert(source: Path, output: Path, max_samples: int | None) -> tuple[int, int]:
    """Write conversations as JSON Lines; returns how many were converted and how many items skipped on the way.

    The file is written whole or not at all. Raises where nothing could be converted.
    """
    converted = skipped = 0
    with atomic.writing(output) as file:
        for item in stream_items(source):
            if converted == max_samples:
                break
            line = _utf8_line(conversation(item))
            if line is None:
                skipped += 1
                continue
            file.write(line)
            converted += 1
        if not converted:
            raise PosttrainError(f"{source}: nothing to convert, {skipped} skipped; expected items with {FIELDS}")
    return converted, skipped


def _utf8_line(value: dict[str, Any] | None) -> bytes | None:
    """A line of JSON Lines without spaces; None for no value, or for text with half a surrogate pair."""
    if value is None:
        return None
    try:
        return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    except UnicodeEncodeError:
        return None


def read_triples(records: list[Record], path: Path) -> list[Triple]:
    """Triples of records with subject, object, and relation or predicate; raises for one that lacks any."""
    triples = []
    for number, record in enumerate(records, start=1):
        predicate = record.get("predicate") or record.get("relation")
        values = (record.get("subject"), predicate, record.get("object"))
        if not all(isinstance(value, str) and value for value in values):
            raise SourceError(f"{path}: record {number}: expected subject, relation and object as text: {record}")
        triples.append(Triple(*values, uuid=str(record.get("uuid") or "")))
    return triples


def generate(triples: list[Triple], seed: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """One question a triple with five options, and how many triples were dropped for which reason.

    The four others are objects of the same predicate which are not known to be true of the subject too. Draws key on
    seed and triple, so a triple's place in the file does not matter.
    """
    objects: dict[str, dict[str, str]] = defaultdict(dict)
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for triple in triples:
        objects[triple.predicate].setdefault(triple.object.casefold(), triple.object)
        answers[triple.subject, triple.predicate].add(triple.object.casefold())
    candidates = {predicate: sorted(found) for predicate, found in objects.items()}
    templates = yaml.safe_load((Path(__file__).parent / "omcq.yaml").read_text())
    questions, dropped, seen = [], Counter[str](), set()
    for triple in triples:
        fact = (triple.subject, triple.predicate, triple.object.casefold())
        true = answers[triple.subject, triple.predicate]
        if fact in seen:
            dropped["duplicate"] += 1
        elif len(candidates[triple.predicate]) - len(true) < len(LETTERS) - 1:
            dropped["too_few_objects"] += 1
        else:
            generator = random.Random(json.dumps([seed, *fact]))
            others = _draw(candidates[triple.predicate], true, generator)
            questions.append(
                _question(triple, [objects[triple.predicate][key] for key in others], templates, generator)
            )
        seen.add(fact)
    return questions, dropped


def _draw(candidates: list[str], true: set[str], generator: random.Random) -> list[str]:
    """Four different false objects; the caller made sure that there are that many."""
    drawn: list[str] = []
    while len(drawn) < len(LETTERS) - 1:
        candidate = generator.choice(candidates)
        if candidate not in true and candidate not in drawn:
            drawn.append(candidate)
    return drawn


def _question(triple: Triple, others: list[str], templates: dict[str, str], generator: random.Random) -> dict[str, Any]:
    choices = list(others)
    correct = generator.randrange(len(LETTERS))
    choices.insert(correct, triple.object)
    options = [f"{letter}:{choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    template = templates.get(triple.predicate, DEFAULT_QUESTION)
    target = {
        "question": template.replace("{predicate}", triple.predicate).replace("{subject}", triple.subject),
        "options": ",".join(options),
        "correct_answer": options[correct],
        "uuid": triple.uuid,
        "choices": choices,
        "subject": triple.subject,
        "predicate": triple.predicate,
        "object": triple.object,
    }
    return {"target": [target]}


def write_questions(output: Path, questions: list[dict[str, Any]]) -> None:
    """Write a JSON array with one question a line, whole or not at all."""
    with atomic.writing(output) as file:
        _write_array(file, questions)


def _write_array(file: IO[bytes], items: list[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write((",\n" if number else "[\n").encode() + json.dumps(item, ensure_ascii=False).encode())
    file.write(b"\n]\n" if items else b"[]\n")
