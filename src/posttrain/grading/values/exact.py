"""Whether two answers are equal, decided without sympy where that is possible.

Answers are numbers, text, labels, equations or containers of such; the kind of container counts. What only algebra can
decide is asked of `leaf`, which says None where it cannot tell either.
"""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction

from posttrain.grading.reading.normalise import WHOLE_THOUSANDS, normalise
from posttrain.grading.values.containers import ASSIGNMENT, NAME, Container, container_of, split_items, without_repeats
from posttrain.grading.values.rational import to_rational

Leaf = Callable[[str, str], bool | None]
MAX_ITEMS = 200  # of a container
HALF_OPEN = {"[)", "(]"}  # intervals, which no bare list is
SEGMENT = r"(?:\\(?:angle|triangle|overline)\s*)?\{?[A-Z]+\}?(?:_(?:\w|\{\w+\}))?"
QUANTITY = re.compile(  # what a gold may name before its value: (p,q), |AB|, AB:CD, \frac{AB}{CD}
    rf"^(?:\((?:\s*[A-Za-z]\w?\s*,)+\s*[A-Za-z]\w?\s*\)|\|\s*{SEGMENT}\s*\||\\frac\{{{SEGMENT}\}}\{{{SEGMENT}\}}"
    rf"|{SEGMENT}(?:\s*[:/]\s*{SEGMENT})+|\\angle\s*{SEGMENT})\s*=\s*([^=]+)$"
)
BASE = re.compile(r"^([0-9A-Fa-f]+)_\{?(\d+)\}?$")
SHORT_WORDS = ("no", "yes", "odd")
UNIT_LETTER = re.compile(r"^(.*\d)\s+([mg])$")
LETTER_LAST = re.compile(r"\d\s{0,9}([mg])$")
WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*[A-Za-z.]")
RELATION = re.compile(r"<|>|\\le(?![a-z])|\\ge(?![a-z])")
LABELLED = re.compile(r"^[A-Z][A-Za-z]+\s*:\s*(.+)$")
DEGREES = re.compile(r"^(-?[\d./]+|-?\\frac\{\d+\}\{\d+\})\s*(?:\^\s*\{?\s*)\\circ\s*\}?$")
NAMED_LAST = re.compile(rf"^[^,<>]*=\s*({NAME})\s*=\s*([^=]+)$")  # a gold's a = b = x = 3; an answer's must agree
ONLY = re.compile(r"^\\text\s*\{\s*only\s*\}\s*")


def unknown(gold: str, answer: str) -> bool | None:
    """The leaf that never knows: what is left undecided needs algebra."""
    return None


def equal(gold: str, answer: str, leaf: Leaf = unknown) -> bool | None:
    """Whether the answer equals the gold; None where `leaf` could not tell."""
    for alike in (_same_angle, _same_letter, _same_list):
        gold, answer = alike(gold, answer), alike(answer, gold)
    try:
        return _equal(normalise(gold), normalise(answer), leaf)
    except RecursionError:  # hundreds of containers or inequalities within another: no answer to any question
        return False


def _same_angle(angle: str, other: str) -> str:
    """Degrees as radians where the other side is in radians; elsewhere the sign of degrees is a unit."""
    written = DEGREES.match(angle.strip().strip("$").replace("°", "^\\circ"))
    return f"\\frac{{{written.group(1)}\\pi}}{{180}}" if written and ("\\pi" in other or "π" in other) else angle


def _same_letter(text: str, other: str) -> str:
    """`3 m` as `3m` where the other side ends in that letter too; elsewhere it is a unit."""
    written = UNIT_LETTER.match(text.strip().strip("$"))
    ending = LETTER_LAST.search(other.strip().strip("$"))
    return "".join(written.groups()) if written and ending and written.group(2) == ending.group(1) else text


def _same_list(text: str, other: str) -> str:
    """`101,102` as a list where the other side is one, written with blanks; elsewhere it is a number."""
    bare = text.strip().strip("$")
    return bare.replace(",", ", ") if ", " in other and WHOLE_THOUSANDS.match(bare) else text


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
    gold_base, answer_base = BASE.match(gold), BASE.match(answer)
    if gold_base and answer_base:
        return gold_base.groups() == answer_base.groups()
    if (
        (based := gold_base or answer_base)
        and based.group(2) != "10"
        and to_rational_or_none(answer if gold_base else gold) is not None
    ):
        return False
    gold_text, text = _text(gold), _text(answer)
    if gold_text is not None and text is not None:
        return gold_text == text
    left, right = container_of(gold), container_of(answer)
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
    gold, answer = NAMED_LAST.sub(r"\1=\2", _end_of_chain(gold)), _end_of_chain(answer)
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
    if len(sides) < 2 or not re.fullmatch(rf"\s*{NAME}\s*", name) or RELATION.search(text):
        return text
    if len(split_items(text)) > 1 or any(side.rstrip().endswith(name.strip()) for side in sides[:-1]):
        return text  # x = 5 or x = 7, whichever way the two are parted
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
    if WORDS.fullmatch(plain) and (inner or len(plain) > 3 or plain.isupper() or plain.casefold() in SHORT_WORDS):
        return plain.casefold().rstrip(".")
    return None


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
    if len(kinds) > 1 and ("list" not in kinds or kinds & HALF_OPEN):
        return False
    if left.name and right.name and left.name != right.name:
        return False
    named = kinds == {"list"} and (len(_names(left)) > 1) != (len(_names(right)) > 1)  # x=3, y=4 beside 3, 4
    ordered = named or not kinds <= {"list", "\\{\\}", "union"}
    if not ordered:
        left, right = without_repeats(left), without_repeats(right)
    if len(left.items) != len(right.items) or len(left.items) > MAX_ITEMS:
        return False
    if not ordered:
        return _match_in_any_order(left.items, list(right.items), leaf)
    return _all(_equal(a, b, leaf) for a, b in zip(left.items, right.items, strict=True))


def _names(container: Container) -> set[str]:
    return {match.group(1) for item in container.items if (match := ASSIGNMENT.match(item))}


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
