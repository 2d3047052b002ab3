"""Whether two answers are equal, decided without sympy where that is possible.

Answers are numbers, text, labels, equations or containers of such; the kind of container counts. What only algebra can
decide is asked of `leaf`, which says None where it cannot tell either.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from posttrain.verifier.normalise import normalise
from posttrain.verifier.rational import to_rational

Leaf = Callable[[str, str], bool | None]
MAX_ITEMS = 200  # of a container
ASSIGNMENT = re.compile(r"^\s*(\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?(?:\([a-z]\))?)\s*(?:=|\\in)\s*(.+)$", re.DOTALL)
BASE = re.compile(r"^([0-9A-Fa-f]+)_\{?(\d+)\}?$")
WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*[A-Za-z.]")
NAME = r"(?:[A-Za-z]|\\[a-z]+)"
DOUBLE_INEQUALITY = re.compile(rf"^(.+?)(\\le|<|\\ge|>)\s*{NAME}\s*(\\le|<|\\ge|>)(.+)$")
INEQUALITY = re.compile(rf"^{NAME}\s*(\\le|<|\\ge|>)([^<>]+)$")
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
    return _equal(normalise(gold), normalise(answer), leaf)


def _equal(gold: str, answer: str, leaf: Leaf) -> bool | None:
    if not answer or not gold:
        return False
    if gold == answer:
        return True
    gold, answer = _value_of_assignments(gold, answer)
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
    """Exact comparison where both are arithmetic; a division by zero equals nothing."""
    try:
        expected, value = to_rational(gold), to_rational(answer)
    except ZeroDivisionError:
        return False
    return None if expected is None or value is None else expected == value


def _value_of_assignments(gold: str, answer: str) -> tuple[str, str]:
    """`x=5` is 5 where the other side names no variable, or the same one."""
    left, right = ASSIGNMENT.match(gold), ASSIGNMENT.match(answer)
    if left and right:
        same = left.group(1) == right.group(1)
        return (left.group(2), right.group(2)) if same and _single(left) and _single(right) else (gold, answer)
    if right and _single(right) and "=" not in gold:
        return gold, right.group(2)
    if left and _single(left) and "=" not in answer:
        return left.group(2), answer
    return gold, answer


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
    if "\\begin" in answer:
        return None
    items = split_items(answer)
    if len(items) > 1:
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
    if answer.count("\\pm") == 1:
        return Container("list", (answer.replace("\\pm", "+"), answer.replace("\\pm", "-")))
    return None


def _interval(answer: str) -> Container | None:
    """`2 \\le x < 5` and `\\{x | 2 \\le x < 5\\}` as [2, 5); `x < 5` as (-\\infty, 5)."""
    if built := SET_BUILDER.match(answer):
        answer = built.group(1).strip()
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
    return [sign for item in items if item for sign in _signs(item)]


def _signs(item: str) -> list[str]:
    """An item of a list with `\\pm` stands for two."""
    if item.count("\\pm") != 1 or "(" in item:
        return [item]
    return [item.replace("\\pm", "+"), item.replace("\\pm", "-")]


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
        return False if single.kind == "list" or "\\begin" not in gold + answer else leaf(gold, answer)
    kinds = {left.kind, right.kind}
    if len(kinds) > 1 and "list" not in kinds:
        return False
    if len(left.items) != len(right.items) or len(left.items) > MAX_ITEMS:
        return False
    if kinds <= {"list", "\\{\\}", "union"}:
        return _match_in_any_order(left.items, list(right.items), leaf)
    return _all(_equal(a, b, leaf) for a, b in zip(left.items, right.items, strict=True))


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
