"""Decide whether two answers are equal, without sympy where that is possible.

Answers are numbers, words, labels, times, equations or containers of such; the kind of container counts. `RULES` are
asked in order, and the first that knows both answers decides. What only algebra can decide is asked of the leaf.
"""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import pairwise

from posttrain.grading.reading.normalise import WHOLE_THOUSANDS, normalise, squeezed
from posttrain.grading.values import names, words
from posttrain.grading.values.bases import read_bases
from posttrain.grading.values.clock import read_clock, same_time
from posttrain.grading.values.containers import Container, container_of, without_repeats
from posttrain.grading.values.number_words import read_number_words
from posttrain.grading.values.rational import Tolerance, same_percentage, to_rational, to_rational_or_none
from posttrain.grading.values.renaming import renamed
from posttrain.grading.values.units import conversion, scaled, split_unit

Leaf = Callable[[str, str, bool], bool | None]  # the last: whether the second may be the first, rounded
MAX_ITEMS = 200  # of a container
MAX_EXACT = 600  # characters of both answers; longer ones are compared where that can be stopped
MAX_COMPARISONS = 400  # of one pair, for the same reason
RELATION = re.compile(r"<|>|\\le(?![a-z])|\\ge(?![a-z])")
VARIABLE = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])|(?<!\\)\b[a-z]{2,3}\b")
DEGREE, RADIAN = (("degree", 1),), (("radian", 1),)


class _Unfinished(Exception):
    """More comparisons than may be made here."""


class _Pass(Exception):
    """The rule does not know these answers."""


def unknown(gold: str, answer: str, rounded: bool) -> bool | None:
    """The leaf that never knows: what is left undecided needs algebra."""
    return None


def equal(gold: str, answer: str, leaf: Leaf = unknown, tolerance: Tolerance | None = None) -> bool | None:
    """Whether the answer equals the gold; None where `leaf` could not tell, or where telling takes long.

    Without a leaf the time is bounded: long texts and many comparisons are left to a process that can be killed.
    """
    bounded = leaf is unknown
    if bounded and len(gold) + len(answer) > MAX_EXACT:
        return True if gold.strip() == answer.strip() else None
    gold, answer = _same_list(gold, answer), _same_list(answer, gold)
    try:
        comparison = Comparison(leaf, MAX_COMPARISONS if bounded else None, tolerance)
        return comparison.equal(normalise(gold), normalise(answer))
    except _Unfinished:
        return None
    except RecursionError:  # hundreds of containers or inequalities within another: no answer to any question
        return False


def explain(gold: str, answer: str) -> list[str]:
    """The names of the rules that decide without algebra, the outermost first; none where the texts are the same."""
    comparison = Comparison(unknown, MAX_COMPARISONS)
    try:
        comparison.equal(normalise(gold), normalise(answer))
    except (_Unfinished, RecursionError):
        return ["too long to compare here"]
    return list(dict.fromkeys(reversed(comparison.rules)))


def _same_list(text: str, other: str) -> str:
    """`101,102` as a list where the other side is one, written with blanks; elsewhere it is a number."""
    bare = text.strip().strip("$")
    return bare.replace(",", ", ") if ", " in other and WHOLE_THOUSANDS.match(bare) else text


class Comparison:
    """One comparison of two normalised answers and of the parts they are made of."""

    def __init__(self, leaf: Leaf, left: int | None, tolerance: Tolerance | None = None) -> None:
        self.leaf, self.left, self.tolerance = leaf, left, tolerance
        self.rules: list[str] = []  # that decided, the outermost last
        self.bare = True  # neither an item of a container nor the value of a unit

    def equal(self, gold: str, answer: str) -> bool | None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise _Unfinished
        if not answer or not gold:
            return False
        if gold == answer or squeezed(gold) == squeezed(answer):
            return True
        for rule in RULES:
            try:
                verdict = rule(self, gold, answer)
            except _Pass:
                continue
            self.rules.append(rule.__name__)
            return verdict
        return self.leaf(gold, answer, False)

    def numbers(self, gold: str, answer: str) -> bool:
        """Exact comparison where both are arithmetic or numbers in words; a division by zero equals nothing."""
        try:
            expected, value = _number(gold), _number(answer)
        except ZeroDivisionError:
            return False
        if expected is None or value is None:
            raise _Pass
        if self.tolerance is not None and self.tolerance.holds(gold, expected, value):
            return True
        return expected == value or same_percentage(gold, answer, expected, value, self.bare)

    def meanings(self, gold: str, answer: str) -> bool:
        if words.meaning(gold) == words.meaning(answer):
            return True
        raise _Pass

    def choices(self, gold: str, answer: str) -> bool | None:
        """A label of a choice, alone or with its option; a gold that is no label is compared with the option."""
        if (label := words.as_choice(gold, answer)) is not None:
            return label == gold
        label, option = words.split_option(answer)
        gold_label, gold_option = words.split_option(gold)
        if label and gold_label:
            return label == gold_label
        if label and words.text_of(gold) not in words.LABELS:
            return self.equal(gold, option)
        if gold_label:
            chosen = words.as_choice(gold_label, answer)
            return chosen == gold_label if chosen else self.equal(gold_option, answer)
        raise _Pass

    def named(self, gold: str, answer: str) -> bool | None:
        """Names and chains of equal values on either side are put away; equations proper are left to the leaf."""
        (expected, _), (value, rounded) = names.without_rounding(gold), names.without_rounding(answer)
        if rounded is not None and (states := self._rounds(value, rounded)) is not True:
            return states
        expected, value = names.without_label(expected, value), names.without_label(value, expected)
        left, right = names.Named.read(expected, trusted=True), names.Named.read(value)
        if (left.sides, right.sides) == ((gold,), (answer,)):
            raise _Pass
        if left.is_equation and right.is_equation and VARIABLE.search(expected + value):
            raise _Pass
        if left.name and right.name and not names.same_name(left.name, right.name):
            raise _Pass
        for side, other in ((left, right), (right, left)):
            if (whole := self._is_chain(side)) is not True:
                proper = VARIABLE.search("=".join(side.sides)) or (left.name and right.name)
                if whole is False and (other.name or other.is_equation) and proper:
                    raise _Pass
                return whole
        return self.equal(*names.same_argument(left, right))

    def _rounds(self, value: str, rounded: str) -> bool | None:
        """Whether the second is the first, rounded; a value that contradicts itself is none."""
        exact, other = (to_rational_or_none(names.Named.read(text).sides[-1]) for text in (value, rounded))
        if exact is not None and other is not None:
            return names.is_rounded(exact, other)
        return self.leaf(names.Named.read(value).sides[-1], names.Named.read(rounded).sides[-1], True)

    def _is_chain(self, named: "names.Named") -> bool | None:
        """Whether the sides behind the name are equal; those with letters say nothing where there is a name."""
        sides = [side for side in named.sides if not (named.name and VARIABLE.search(side))] or named.sides[-1:]
        if named.sides[-1] not in sides:
            sides.append(named.sides[-1])
        return _all(self.equal(a, b) for a, b in pairwise(sides))

    def times(self, gold: str, answer: str) -> bool:
        left, right = read_clock(gold), read_clock(answer)
        if left and right:
            return same_time(left, right)
        clock, other = left or right, answer if left else gold
        if clock and clock[1] and clock[0] % 3600 == 0 and other.isdigit() and len(other) < 3:
            return clock[0] // 3600 % 12 == int(other) % 12 and 1 <= int(other) <= 12  # 2 for 2:00 p.m.
        raise _Pass

    def bases(self, gold: str, answer: str) -> bool:
        (expected, left), (value, right) = read_bases(gold), read_bases(answer)
        if not left and not right:
            raise _Pass
        if left and right:
            return expected == value
        if set(left + right) == {10}:
            raise _Pass
        return False

    def units(self, gold: str, answer: str) -> bool | None:
        """A unit may be missing on one side; those of one dimension are converted, others differ."""
        (expected, left), (value, right) = split_unit(gold), split_unit(answer)
        if left is None and right is None:
            raise _Pass
        kinds = [unit.dimension if unit else None for unit in (left, right)]
        if DEGREE in kinds and (RADIAN in kinds or ("\\pi" in gold + answer and None in kinds)):
            expected, value = (
                f"\\frac{{({text})\\pi}}{{180}}" if kind == DEGREE else text
                for text, kind in zip((expected, value), kinds, strict=True)
            )
            return self.equal(expected, value)
        factor, self.bare = conversion(left, right), False
        return False if factor is None else self.equal(expected, scaled(value, factor))

    def texts(self, gold: str, answer: str) -> bool:
        expected, text = words.text_of(gold), words.text_of(answer)
        if expected is not None and text is not None:
            return expected == text
        in_text = [words.IN_TEXT.fullmatch(side) is not None for side in (gold, answer)]
        if any(in_text) and words.plain_words(gold).casefold() == words.plain_words(answer).casefold():
            return True
        if all(in_text):
            return False
        raise _Pass

    def containers(self, gold: str, answer: str) -> bool | None:
        left, right = container_of(gold), container_of(answer)
        if left and right:
            return self._items(left, right)
        if left is None and right is None:
            raise _Pass
        single = left or right
        assert single is not None
        if single.kind == "\\{\\}" and len(single.items) == 1:
            return self.equal(single.items[0] if left else gold, single.items[0] if right else answer)
        if all(RELATION.search(side) for side in (gold, answer)):  # one of them is an inequality to be solved first
            raise _Pass
        if single.kind == "list" or "\\begin" not in gold + answer:
            return False
        raise _Pass

    def renamings(self, gold: str, answer: str) -> bool | None:
        """A constant of integration, or the integer of a family of solutions, may have any name."""
        pair = renamed(gold, answer)
        if pair == (gold, answer):
            raise _Pass
        return self.equal(*pair)

    def kinds(self, gold: str, answer: str) -> bool:
        """Words are no number, and an answer in words is no mathematics."""
        for one, other in ((gold, answer), (answer, gold)):
            text = words.text_of(one)
            if text is not None and len(text) > 1 and to_rational_or_none(other) is not None:
                return False
        raise _Pass

    def _items(self, left: Container, right: Container) -> bool | None:
        kinds, self.bare = {left.kind, right.kind}, False
        if len(kinds) > 1 and ("list" not in kinds or _is_interval(left) or _is_interval(right)):
            return False
        if left.name and right.name and left.name != right.name:
            return False
        named = kinds == {"list"} and (len(left.names()) > 1) != (len(right.names()) > 1)  # x=3, y=4 beside 3, 4
        ordered = named or not kinds <= {"list", "\\{\\}", "union"}
        if not ordered:
            left, right = without_repeats(left), without_repeats(right)
        if len(left.items) != len(right.items) or len(left.items) > MAX_ITEMS:
            return False
        if not ordered:
            return self._in_any_order(left.items, list(right.items))
        return _all(self.equal(a, b) for a, b in zip(left.items, right.items, strict=True))

    def _in_any_order(self, golds: tuple[str, ...], answers: list[str]) -> bool | None:
        """Each gold has an answer of its own. Equality is transitive, so taking the first match loses nothing."""
        undecided = False
        for gold in golds:
            verdicts = [self.equal(gold, answer) for answer in answers]
            if True in verdicts:
                answers.pop(verdicts.index(True))
            elif None in verdicts:
                undecided = True
            else:
                return False
        return None if undecided else True


RULES = (
    Comparison.numbers, Comparison.meanings, Comparison.choices, Comparison.named, Comparison.times, Comparison.bases,
    Comparison.units, Comparison.texts, Comparison.renamings, Comparison.containers, Comparison.kinds,
)  # fmt: skip


def _number(text: str) -> Fraction | None:
    if text[0].isalpha() or text.startswith("\\text"):
        return read_number_words(words.plain_words(text))
    return to_rational(text)


def _is_interval(container: Container) -> bool:
    """A pair that no bare list is: with a square bracket, or with no end."""
    endless = container.kind == "()" and any("\\infty" in item for item in container.items)
    return len(container.items) == 2 and (container.kind in ("[]", "[)", "(]") or endless)


def _all(outcomes: Iterable[bool | None]) -> bool | None:
    verdicts = list(outcomes)
    if False in verdicts:
        return False
    return None if None in verdicts else True
