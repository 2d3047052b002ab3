"""Answers that hold several: tuples, sets, lists, intervals and unions, read from one written answer."""

import itertools
import re
from dataclasses import dataclass

MAX_SIGNS = 4  # `\pm` in one item
ASSIGNMENT = re.compile(r"^\s*(\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?(?:\([^()=,]*\))?)\s*(?:=|\\in)\s*(.+)$", re.DOTALL)
NAME = r"(?:[A-Za-z]|\\[a-z]+)"
BOUND = r"((?:(?!\\[lg]e(?![a-z])|\b(?:and|or)\b)(?:[^<>=,;]|,(?=\d{3}(?!\d))))+)"
DOUBLE_INEQUALITY = re.compile(rf"^{BOUND}(\\le|<|\\ge|>)\s*({NAME})\s*(\\le|<|\\ge|>){BOUND}$")
INEQUALITY = re.compile(rf"^({NAME})\s*(\\le|<|\\ge|>){BOUND}$")
TURNED_INEQUALITY = re.compile(rf"^{BOUND}(\\le|<|\\ge|>)\s*({NAME})$")
TURNED = {"\\le": "\\ge", "\\ge": "\\le", "<": ">", ">": "<"}
SET_BUILDER = re.compile(rf"^\\\{{\s*{NAME}\s*(?:\||:|\\mid)\s*(.+)\\\}}$")
CLOSING = {"(": ")", "[": "]", "\\{": "\\}"}
COLUMN = re.compile(r"^\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}$", re.DOTALL)
GROUPS = re.compile(r";|\b(?:and|or)\b")


@dataclass(frozen=True)
class Container:
    """Items between brackets; `kind` is the pair of brackets, or `list` for items that stand bare.

    `name` is the variable of an interval that is written as an inequality.
    """

    kind: str
    items: tuple[str, ...]
    name: str | None = None


def container_of(answer: str) -> Container | None:
    """The container that the answer is, or None for a single item."""
    inner = re.fullmatch(r"\\text\s*\{([^{}]*,[^{}]*)\}", answer)
    answer = inner.group(1) if inner else answer
    if "\\cup" in answer:
        parts = [part.strip() for part in answer.split("\\cup")]
        return Container("union", tuple(parts)) if all(parts) else None
    if interval := _interval(answer):
        return interval
    if (column := COLUMN.match(answer)) and "\\begin" not in column.group(1):
        return Container("()", tuple(item.strip() for item in column.group(1).split("\\\\") if item.strip()))
    if "\\begin" in answer:
        return None
    if solutions := _solutions(answer):
        return solutions
    pieces = _split(answer)
    items = [sign for piece in pieces for sign in _signs(piece)]
    bracketed = len(pieces) == 1 and answer.startswith("\\{") and answer.endswith("\\}")
    if len(items) > 1 and not bracketed:
        return Container("list", tuple(items))
    for opening in CLOSING:
        if answer.startswith(opening):
            for closing in (")", "]", "\\}"):
                if answer.endswith(closing) and len(answer) >= len(opening) + len(closing):
                    body = answer[len(opening) : len(answer) - len(closing)]
                    if not _balanced(body):
                        continue
                    parts = split_items(body)
                    if len(parts) > 1 or opening == "\\{":
                        return Container(opening + closing, tuple(parts))
    return None


def _solutions(answer: str) -> Container | None:
    """`p=5, q=2; p=7, q=2` as the tuples (p=5, q=2), (p=7, q=2); None unless all groups name the same in one order."""
    groups = [_split(group) for group in GROUPS.split(answer)]
    named = [[match.group(1) for item in group if (match := ASSIGNMENT.match(item))] for group in groups]
    complete = all(len(names) == len(group) > 1 for names, group in zip(named, groups, strict=True))
    if len(groups) < 2 or not complete or named.count(named[0]) != len(named):
        return None
    return Container("list", tuple(f"({','.join(group)})" for group in groups))


def _interval(answer: str) -> Container | None:
    """`2 \\le x < 5` and `\\{x | 2 \\le x < 5\\}` as [2, 5); `x < 5` as (-\\infty, 5)."""
    built = SET_BUILDER.match(answer)
    if built:
        answer = built.group(1).strip()
    if turned := TURNED_INEQUALITY.match(answer):
        answer = f"{turned.group(3)} {TURNED[turned.group(2)]} {turned.group(1)}"
    if one := INEQUALITY.match(answer):
        name, relation, bound = one.groups()
        variable = None if built else name
        if relation in ("\\le", "<"):
            return Container("(]" if relation == "\\le" else "()", ("-\\infty", bound.strip()), variable)
        return Container("[)" if relation == "\\ge" else "()", (bound.strip(), "\\infty"), variable)
    match = DOUBLE_INEQUALITY.match(answer)
    if match is None:
        return None
    low, first, name, second, high = match.groups()
    if (first in ("\\le", "<")) != (second in ("\\le", "<")):
        return None
    if first in ("\\ge", ">"):
        low, high, first, second = high, low, second, first
    opening = "[" if first in ("\\le", "\\ge") else "("
    closing = "]" if second in ("\\le", "\\ge") else ")"
    return Container(opening + closing, (low.strip(), high.strip()), None if built else name)


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
