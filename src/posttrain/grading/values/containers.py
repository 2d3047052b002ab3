"""Answers that hold several: tuples, sets, lists, intervals and unions, read from one written answer."""

import itertools
import re
from dataclasses import dataclass

from posttrain.grading.values.intervals import REAL_LINE, interval_of, without_points

MAX_SIGNS = 4  # `\pm` in one item
ASSIGNMENT = re.compile(r"^ ?(\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*+\}))?(?:\([^()=,]*+\))?) ?(?:=|\\in) ?(.+)$", re.DOTALL)
CLOSING = {"(": ")", "[": "]", "\\{": "\\}"}
COLUMN = re.compile(r"^\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}$", re.DOTALL)
LISTED_IN_TEXT = re.compile(r"\\text ?\{([^{}]*,[^{}]*+)\}")
GROUPS = re.compile(r";|\b(?:and|or)\b")
DIFFERENCE = re.compile(
    r"^(.+?) ?(?:\\setminus|\\backslash|\\smallsetminus|(?<=\}) ?-|(?<=\)) ?-) ?\\\{(.+)\\\}$", re.DOTALL
)
UNEQUAL = re.compile(r"^(?:x|[a-z]) ?\\ne ?([^<>=]+)$")


@dataclass(frozen=True)
class Container:
    """Items between brackets; `kind` is the pair of brackets, or `list` for items that stand bare.

    `name` is the variable of an interval that is written as an inequality.
    """

    kind: str
    items: tuple[str, ...]
    name: str | None = None

    def names(self) -> set[str]:
        """The names that are given values in it."""
        return {match.group(1) for item in self.items if (match := ASSIGNMENT.match(item))}


def container_of(answer: str) -> Container | None:
    """The container that the answer is, or None for a single item."""
    inner = LISTED_IN_TEXT.fullmatch(answer)
    answer = inner.group(1) if inner else answer
    if interval := _of_real_numbers(answer):
        return interval
    if "\\cup" in answer:
        parts = [part.strip() for part in answer.split("\\cup")]
        return Container("union", tuple(parts)) if all(parts) else None
    if (column := COLUMN.match(answer)) and "\\begin" not in column.group(1):
        return Container("()", tuple(item.strip() for item in column.group(1).split("\\\\") if item.strip()))
    if "\\begin" in answer:
        return None
    if solutions := _solutions(answer):
        return solutions
    pieces = _split(answer)
    items = [sign for piece in pieces for sign in _signs(piece)]
    if len(items) > 1 and not (len(pieces) == 1 and answer.startswith("\\{") and answer.endswith("\\}")):
        return Container("list", tuple(items))
    return _bracketed(answer)


def _of_real_numbers(answer: str) -> Container | None:
    """Intervals in any spelling, and what is left of one without some points."""
    if unequal := UNEQUAL.match(answer):
        rest = without_points(REAL_LINE, split_items(unequal.group(1)))
        return Container("union", rest) if rest else None
    if (difference := DIFFERENCE.match(answer)) and difference.group(1).strip():
        rest = without_points(difference.group(1).strip(), split_items(difference.group(2)))
        return Container("union", rest) if rest else None
    found = interval_of(answer)
    if found is None:
        return None
    kind, items, name = found
    return Container(kind, items, name)


def _bracketed(answer: str) -> Container | None:
    for opening in CLOSING:
        if answer.startswith(opening):
            for closing in (")", "]", "\\}"):
                if answer.endswith(closing) and len(answer) >= len(opening) + len(closing):
                    body = answer[len(opening) : len(answer) - len(closing)]
                    if not _balanced(body):
                        continue
                    parts = split_items(body)
                    if opening + closing == "\\{\\}" and len(parts) > 1 and _all_named(parts):
                        return Container("list", tuple(parts))  # {x=1, y=2} is a solution
                    if len(parts) > 1 or opening == "\\{":
                        return Container(opening + closing, tuple(parts))
    return None


def _all_named(parts: list[str]) -> bool:
    names = [match.group(1) for part in parts if (match := ASSIGNMENT.match(part))]
    return len(set(names)) == len(parts)


def _solutions(answer: str) -> Container | None:
    """`p=5, q=2; p=7, q=2` as the tuples (p=5, q=2), (p=7, q=2); None unless all groups name the same in one order."""
    groups = [_split(group) for group in GROUPS.split(answer)]
    named = [[match.group(1) for item in group if (match := ASSIGNMENT.match(item))] for group in groups]
    complete = all(len(names) == len(group) > 1 for names, group in zip(named, groups, strict=True))
    if len(groups) < 2 or not complete or named.count(named[0]) != len(named):
        return None
    return Container("list", tuple(f"({','.join(group)})" for group in groups))


def split_items(text: str) -> list[str]:
    """The items of a list: the text split outside all brackets, one with `\\pm` twice."""
    return [sign for item in _split(text) for sign in _signs(item)]


def _split(text: str) -> list[str]:
    """The text split at commas, semicolons and `and` outside all brackets."""
    items, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if text[position] == "\\" and text[position + 1 : position + 2] in ("{", "}"):
            depth += 1 if text[position + 1] == "{" else -1
            position += 2
            continue
        character = text[position]
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and (character in ",;" or text.startswith((" and ", " or "), position)):
            items.append(text[start:position].strip())
            start = position + (1 if character in ",;" else len(text[position:].split(" ", 2)[1]) + 1)
        position += 1
    items.append(text[start:].strip().removeprefix("and ").removeprefix("or "))
    return [item for item in items if item]


def _signs(item: str) -> list[str]:
    """An item of a list with `\\pm` stands for two; a tuple with several stands for every choice."""
    if not 1 <= item.count("\\pm") <= MAX_SIGNS or (item.count("\\pm") > 1 and not item.startswith("(")):
        return [item]
    parts = item.split("\\pm")
    choices = itertools.product("+-", repeat=len(parts) - 1)
    return ["".join(itertools.chain(*zip(parts, (*signs, ""), strict=True))) for signs in choices]


def _balanced(body: str) -> bool:
    depth = 0
    for character in body:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def without_repeats(container: Container) -> Container:
    """A set, and a list of tuples, which is one too, with each item once."""
    if container.kind == "list" and not all(item.startswith("(") for item in container.items):
        return container
    return Container(container.kind, tuple({item.replace(" ", ""): item for item in container.items}.values()))
