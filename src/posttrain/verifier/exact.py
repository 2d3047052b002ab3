"""Whether two answers are equal, decided without sympy where that is possible.

Answers are numbers, text, labels, equations or containers of such; the kind of container counts. What only algebra can
decide is asked of `leaf`, which says None where it cannot tell either.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from posttrain.verifier.normalise import normalise
from posttrain.verifier.rational import to_rational

Leaf = Callable[[str, str], bool | None]
MAX_ITEMS = 200  # of a container
MAX_SIGNS = 4  # `\\pm` in one item
ASSIGNMENT = re.compile(r"^\s*(\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?(?:\([^()=,]*\))?)\s*(?:=|\\in)\s*(.+)$", re.DOTALL)
SEGMENT = r"(?:\\(?:angle|triangle|overline)\s*)?\{?[A-Z]+\}?(?:_(?:\w|\{\w+\}))?"
QUANTITY = re.compile(  # what a gold may name before its value: (p,q), |AB|, AB:CD, \frac{AB}{CD}, P(A)
    rf"^(?:\((?:\s*[A-Za-z]\w?\s*,)+\s*[A-Za-z]\w?\s*\)|\|\s*{SEGMENT}\s*\||\\frac\{{{SEGMENT}\}}\{{{SEGMENT}\}}"
    rf"|{SEGMENT}(?:\s*[:/]\s*{SEGMENT})+|\\angle\s*{SEGMENT})\s*=\s*([^=]+)$"
)
BASE = re.compile(r"^([0-9A-Fa-f]+)_\{?(\d+)\}?$")
WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*[A-Za-z.]")
NAME = r"(?:[A-Za-z]|\\[a-z]+)"
DOUBLE_INEQUALITY = re.compile(rf"^(.+?)(\\le|<|\\ge|>)\s*{NAME}\s*(\\le|<|\\ge|>)(.+)$")
INEQUALITY = re.compile(rf"^{NAME}\s*(\\le|<|\\ge|>)([^<>]+)$")
TURNED_INEQUALITY = re.compile(rf"^([^<>=]+?)\s*(\\le|<|\\ge|>)\s*({NAME})$")
TURNED = {"\\le": "\\ge", "\\ge": "\\le", "<": ">", ">": "<"}
RELATION = re.compile(r"<|>|\\le(?![a-z])|\\ge(?![a-z])")
LABELLED = re.compile(r"^[A-Z][A-Za-z]+\s*:\s*(.+)$")
DEGREES = re.compile(r"^(-?[\d./]+|-?\\frac\{\d+\}\{\d+\})\s*(?:\^\s*\{?\s*)\\circ\s*\}?$")
COLUMN = re.compile(r"^\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}$", re.DOTALL)
GROUPS = re.compile(r";|\b(?:and|or)\b")
ONLY = re.compile(r"^\\text\s*\{\s*only\s*\}\s*")
SET_BUILDER = re.compile(rf"^\\\{{\s*{NAME}\s*(?:\||:|\\mid)\s*(.+)\\\}}$")
CLOSING = {"(": ")", "[": "]", "\\{": "\\}"}


@dataclass(frozen=True)
class Container:
    """Items between brackets; `kind` is the pair of brackets, or `list` for items that stand bare."""

    kind: str
    items: tuple[str, ...]


def unknown(gold: str, answer: str) -> bool | None:
    """The leaf that never knows: what is left undecided needs algebra."""
    return None


def equal(gold: str, answer: str, leaf: Leaf = unknown) -> bool | None:
    """Whether the answer equals the gold; None where `leaf` could not tell."""
    gold, answer = _same_angle(gold, answer), _same_angle(answer, gold)
    try:
        return _equal(normalise(gold), normalise(answer), leaf)
    except RecursionError:  # hundreds of containers or inequalities within another: no answer to any question
        return False


def _same_angle(angle: str, other: str) -> str:
    """Degrees as radians where the other side is in radians; elsewhere the sign of degrees is a unit."""
    written = DEGREES.match(angle.strip().strip("$").replace("°", "^\\circ"))
    return f"\\frac{{{written.group(1)}\\pi}}{{180}}" if written and ("\\pi" in other or "π" in other) else angle


def _equal(gold: str, answer: str, leaf: Leaf) -> bool | None:
    if not answer or not gold:
        return False
    if gold == answer:
        return True
    gold, answer = _value_of_assignments(ONLY.sub("", gold), ONLY.sub("", answer))
    if gold == answer:
        return True
    number = _compare_numbers(gold, answer)
    if number is not None:
        return number
    if (gold_base := BASE.match(gold)) and (answer_base := BASE.match(answer)):
        return gold_base.groups() == answer_base.groups()
    gold_text, text = _text(gold), _text(answer)
    if gold_text is not None and text is not None:
        return gold_text == text
    left, right = _container(gold), _container(answer)
    if left or right:
        return _compare_containers(left, right, gold, answer, leaf)
    if gold_text is not None and len(gold_text) > 1 and to_rational_or_none(answer) is not None:
        return False
    return leaf(gold, answer)


def to_rational_or_none(text: str) -> Fraction | None:
    """The exact value, or None for anything else, a division by zero included."""
    try:
        return to_rational(text)
    except ZeroDivisionError:
        return None


def _compare_numbers(gold: str, answer: str) -> bool | None:
    """Exact comparison where both are arithmetic; a division by zero equals nothing.

    A percent sign of the gold is a unit that the answer may leave out; one that only the answer has is none.
    """
    try:
        expected, value = to_rational(gold), to_rational(answer)
    except ZeroDivisionError:
        return False
    if expected is None or value is None:
        return None
    return expected == value or (gold.endswith("%") and "%" not in answer and expected * 100 == value)


def _value_of_assignments(gold: str, answer: str) -> tuple[str, str]:
    """`x=5` is 5 where the other side names no variable, or the same one."""
    gold, answer = _end_of_chain(gold), _end_of_chain(answer)
    if (named := QUANTITY.match(gold)) and "=" not in answer:
        return named.group(1), answer
    if (labelled := LABELLED.match(answer)) and ":" not in gold:
        return gold, labelled.group(1)
    left, right = ASSIGNMENT.match(gold), ASSIGNMENT.match(answer)
    if left and right:
        same = left.group(1) == right.group(1)
        return (left.group(2), right.group(2)) if same and _single(left) and _single(right) else (gold, answer)
    if right and _single(right) and "=" not in gold:
        return gold, right.group(2)
    if left and _single(left) and "=" not in answer:
        return left.group(2), answer
    return gold, answer


def _end_of_chain(text: str) -> str:
    """`x = 4/2 = 2` as `x = 2`, where the sides that are numbers agree."""
    name, *sides = text.split("=")
    if len(sides) < 2 or "," in text or not re.fullmatch(rf"\s*{NAME}\s*", name) or RELATION.search(text):
        return text
    numbers = {value for side in sides if (value := to_rational_or_none(side.strip())) is not None}
    return f"{name}={sides[-1]}" if len(numbers) <= 1 else text


def _single(match: re.Match[str]) -> bool:
    """One assignment, not a list of them or a chain."""
    return "=" not in match.group(2) and (len(match.group(1)) == 1 or not match.group(1).isalpha())


def _text(answer: str) -> str | None:
    """Words and labels in one form; None for anything with mathematics in it."""
    inner = re.fullmatch(r"\\text\s*\{([^{}]*)\}", answer)
    plain = (inner.group(1) if inner else answer).strip()
    label = re.fullmatch(r"\(?([A-Z])\)?\.?", plain)
    if label:
        return label.group(1)
    if WORDS.fullmatch(plain) and (inner or len(plain) > 3 or plain.isupper()):
        return plain.casefold().rstrip(".")
    return None


def _container(answer: str) -> Container | None:
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
    if built := SET_BUILDER.match(answer):
        answer = built.group(1).strip()
    if turned := TURNED_INEQUALITY.match(answer):
        answer = f"{turned.group(3)} {TURNED[turned.group(2)]} {turned.group(1)}"
    if one := INEQUALITY.match(answer):
        relation, bound = one.groups()
        if relation in ("\\le", "<"):
            return Container("(]" if relation == "\\le" else "()", ("-\\infty", bound.strip()))
        return Container("[)" if relation == "\\ge" else "()", (bound.strip(), "\\infty"))
    match = DOUBLE_INEQUALITY.match(answer)
    if match is None:
        return None
    low, first, second, high = match.groups()
    if (first in ("\\le", "<")) != (second in ("\\le", "<")):
        return None
    if first in ("\\ge", ">"):
        low, high, first, second = high, low, second, first
    opening = "[" if first in ("\\le", "\\ge") else "("
    closing = "]" if second in ("\\le", "\\ge") else ")"
    return Container(opening + closing, (low.strip(), high.strip()))


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


def _compare_containers(
    left: Container | None, right: Container | None, gold: str, answer: str, leaf: Leaf
) -> bool | None:
    if left is None or right is None:
        single = left or right
        assert single is not None
        if single.kind == "\\{\\}" and len(single.items) == 1:
            return _equal(single.items[0] if left else gold, single.items[0] if right else answer, leaf)
        if all(RELATION.search(side) for side in (gold, answer)):  # one of them is an inequality to be solved first
            return leaf(gold, answer)
        return False if single.kind == "list" or "\\begin" not in gold + answer else leaf(gold, answer)
    kinds = {left.kind, right.kind}
    if len(kinds) > 1 and "list" not in kinds:
        return False
    if kinds <= {"list", "\\{\\}", "union"}:
        left, right = _without_repeats(left), _without_repeats(right)
    if len(left.items) != len(right.items) or len(left.items) > MAX_ITEMS:
        return False
    if kinds <= {"list", "\\{\\}", "union"}:
        return _match_in_any_order(left.items, list(right.items), leaf)
    return _all(_equal(a, b, leaf) for a, b in zip(left.items, right.items, strict=True))


def _without_repeats(container: Container) -> Container:
    """A set, and a list of tuples, which is one too, with each item once."""
    if container.kind == "list" and not all(item.startswith("(") for item in container.items):
        return container
    return Container(container.kind, tuple({item.replace(" ", ""): item for item in container.items}.values()))


def _match_in_any_order(golds: tuple[str, ...], answers: list[str], leaf: Leaf) -> bool | None:
    """Each gold has an answer of its own. Equality is transitive, so taking the first match loses nothing."""
    undecided = False
    for gold in golds:
        verdicts = [_equal(gold, answer, leaf) for answer in answers]
        if True in verdicts:
            answers.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _all(outcomes: Iterable[bool | None]) -> bool | None:
    verdicts = list(outcomes)
    if False in verdicts:
        return False
    return None if None in verdicts else True
