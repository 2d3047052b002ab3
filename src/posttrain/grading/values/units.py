"""What stands after a value: its unit, known or any noun; words that change the value are none.

A unit may be missing on one side. Two units of one dimension are converted exactly (50 cm is 0.5 m), two others differ.
"""

import functools
import re
from dataclasses import dataclass, field
from fractions import Fraction

from posttrain.grading.values.number_words import NUMBER_WORDS
from posttrain.grading.values.rational import to_rational_or_none
from posttrain.grading.values.unit_table import (
    AFTER,
    CHANGES,
    CHINESE_CHANGES,
    COMPOUND,
    FRACTION_ENDS,
    GENERIC,
    GLUED,
    IRREGULAR,
    KNOWN,
    LETTERS,
    MODIFIERS,
    POWERS,
    QUALIFIERS,
    SQUARES,
)  # fmt: skip

MAX_TAIL = 120  # characters of a unit
CJK = r"\u3400-\u9fff"
TAIL = re.compile(  # all that may belong to a unit: text, words, exponents, and what joins them
    rf"(?: |\\text ?\{{[^{{}}]*+\}}|\^ ?\{{? ?(?:[23]|-[12]|\\circ) ?\}}?|[A-Za-z{CJK}][A-Za-z.'’{CJK}-]*+|[/·]"
    rf"|\\cdot(?![a-z])|\([A-Za-z /^23]++\))+"
)
TOKEN = re.compile(
    rf"[A-Za-z][A-Za-z.'’-]*|[{CJK}]+|\^ ?\{{? ?-?[123] ?\}}?|° ?[CFcf](?![A-Za-z])|°|[/·]|[^\s.,(){{}}]"
)
IN_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
VALUE_END = re.compile(r"[\d})\]!](?![\d.])|\\pi(?![a-z])")
VARIABLE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
VOWEL = re.compile(r"[aeiouy]")
SEVERAL = re.compile(r"[,;=<>]|\b(?:and|or)\b")


@dataclass(frozen=True)
class Unit:
    """A size in powers of base dimensions. A noun is a dimension of its own; no dimension at all fits any other."""

    size: Fraction
    dimension: tuple[tuple[str, int], ...]


@dataclass
class _Product:
    """The factors read so far."""

    size: Fraction = Fraction(1)
    powers: dict[str, int] = field(default_factory=dict)

    def multiply(self, dimension: str, size: Fraction, power: int) -> None:
        base, exponent = POWERS.get(dimension, (dimension, 1))
        self.size *= size**power
        self.powers[base] = self.powers.get(base, 0) + exponent * power

    def unit(self) -> Unit:
        return Unit(self.size, tuple(sorted((base, power) for base, power in self.powers.items() if power)))


def conversion(gold: Unit | None, answer: Unit | None) -> Fraction | None:
    """How many units of the gold one of the answer is; 1 where a side has none, None where they are not one kind."""
    if gold is None or answer is None or not gold.dimension or not answer.dimension:
        return Fraction(1)
    return answer.size / gold.size if gold.dimension == answer.dimension else None


def scaled(value: str, factor: Fraction) -> str:
    """The value times an exact factor, as text."""
    if factor == 1:
        return value
    number = to_rational_or_none(value)
    scale = f"\\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    return str(number * factor) if number is not None else f"{scale}\\cdot ({value})"


@functools.lru_cache(maxsize=2**12)
def split_unit(text: str) -> tuple[str, Unit | None]:
    """The value and the unit that stands after it; the whole text where there is no unit, or none for certain."""
    for end in VALUE_END.finditer(text, max(0, len(text) - MAX_TAIL)):
        value, tail = text[: end.end()], text[end.end() :]
        if TAIL.fullmatch(tail) and tail.strip():
            alone = not SEVERAL.search(value) and not FUNCTION.search(value)
            unit = read_unit(tail) if alone and _stands_apart(value, tail) else None
            return (value, unit) if unit else (text, None)
    return text, None


def _stands_apart(value: str, tail: str) -> bool:
    """Whether the tail cannot be more factors of the value: a short word may be letters of algebra."""
    if tail.lstrip().startswith(("\\text", "^", "(")):
        return True
    word = tail.split()[0].rstrip(".").split("/")[0].split("^")[0]
    if not word or not word.isascii():
        return True
    number = not VARIABLE.search(value)
    if not tail.startswith(" "):
        return number and (word in GLUED or (len(word) > 2 and _known(word) is not None))
    if len(word) <= 2:
        return number and (word in LETTERS or (len(word) == 2 and (_known(word) is not None or word in SQUARES)))
    plural = len(word) > 3 or word.endswith("s") or word in IRREGULAR or word in QUALIFIERS | MODIFIERS
    return _known(word) is not None or (plural and VOWEL.search(word.lower()) is not None)


@functools.lru_cache(maxsize=2**12)
def read_unit(tail: str) -> Unit | None:
    """The unit that a text names, or None where a word in it makes another value of the one before."""
    text = IN_TEXT.sub(r" \1 ", tail).replace("^\\circ", "°").replace("^{\\circ}", "°").replace("\\cdot", "·")
    tokens = [token for token in map(_word, TOKEN.findall(text)) if token]
    if not any(token.isalpha() or token.startswith("°") for token in tokens) or any(
        map(_changes, tokens, [None, *tokens])
    ):
        return None
    tokens = [part for token in tokens for part in (COMPOUND.get(token) or token).split()]
    return _product(tokens)


def _word(token: str) -> str:
    """A token in one spelling: without dots, in lower case but for single letters, whose case tells a unit."""
    token = token.replace(".", "").replace("’", "'").replace(" ", "").replace("{", "").replace("}", "")
    return token if len(token) == 1 else token.lower()


def _changes(word: str, before: str | None) -> bool:
    if len(word) == 1 and word.isascii() and word.isalpha():
        return word not in LETTERS and word not in ("a", "A")
    if len(word) == 1 and word.isascii() and not word.isalpha():
        return word not in "/"  # 7-ish, 5?
    if word in AFTER:
        return before is None or _known(before) is None
    if word.isascii():
        return word in CHANGES or word in NUMBER_WORDS or word.rstrip("s").endswith(FRACTION_ENDS) or "'" in word[:1]
    return word not in KNOWN and bool(CHINESE_CHANGES & set(word))


def _known(word: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a spelling, singular or plural."""
    if len(word) > 1:
        word = word.lower()
    word = IRREGULAR.get(word, word)
    if word in COMPOUND:
        return "unit", Fraction(1)  # read_unit takes it apart
    found = KNOWN.get(word) or KNOWN.get(word.lower() if len(word) == 1 else word.removesuffix("s"))
    return found or (("unit", Fraction(1)) if word.removesuffix("s") in GENERIC else None)


def _product(tokens: list[str]) -> Unit | None:
    """Factors over factors; what stands behind the noun is read for a `per` only."""
    product, sign, prefix, at, done = _Product(), 1, 1, 0, False
    while at < len(tokens):
        word = tokens[at]
        at += 1
        if word in ("/", "per") or (word in ("a", "an", "each", "every") and product.powers and _is_next(tokens, at)):
            sign, done = -1, False
        elif word in SQUARES:
            prefix = SQUARES[word]
        elif done or word == "·":
            continue
        elif word in QUALIFIERS and not (word == "in" and at in (1, len(tokens)) and _ends_factor(tokens, at)):
            done = True
        elif found := _known(word):
            power = 1
            if at < len(tokens) and (tokens[at] in AFTER or tokens[at].startswith("^")):
                power = AFTER.get(tokens[at]) or int(tokens[at][1:])
                at += 1
            if found[0] not in GENERIC:
                product.multiply(*found, sign * prefix * power)
            prefix = 1
        elif word.startswith("^"):
            return None
        elif product.powers and sign == 1:
            done = True  # 5 cups flour
        else:
            at, noun = _noun(tokens, at - 1)
            if noun:
                product.multiply(f"noun {noun}", Fraction(1), sign)
            done = True
    return product.unit()


def _is_next(tokens: list[str], at: int) -> bool:
    return at < len(tokens) and _known(tokens[at]) is not None


def _ends_factor(tokens: list[str], at: int) -> bool:
    return at == len(tokens) or tokens[at] == "/" or tokens[at].startswith("^")


def _noun(tokens: list[str], at: int) -> tuple[int, str]:
    """Where a noun phrase ends, and its last word in the singular; modifiers alone are no noun."""
    words = []
    while at < len(tokens) and tokens[at] not in QUALIFIERS and tokens[at] not in ("/", "per"):
        words.append(tokens[at])
        at += 1
    words = [word for word in words if word not in MODIFIERS]
    return at, _singular(words[-1]) if words else ""


def _singular(word: str) -> str:
    word = IRREGULAR.get(word, word)
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word.removesuffix("s") if not word.endswith("ss") else word
