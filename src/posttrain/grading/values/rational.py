"""Exact values of written arithmetic: integers, decimals, fractions, powers, percent. No floats, bounded size."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

TOKEN = re.compile(r"\s{0,9}(?:(\d+\.\d*|\.\d+|\d+)|(\\frac|\\times|\\cdot|\\div|\\%)|([-+*/^(){}%!]))")
ROUNDED = re.compile(r"\d\.\d|\b10\^")
DECIMAL = re.compile(r"-?[\d.]+")
MAX_BITS = 20_000  # of any intermediate value; larger ones are left to the process that can be killed
MAX_LENGTH = 5000  # characters
MAX_FACTORIAL = 200


class NotRationalError(Exception):
    """The text is not an arithmetic expression, or too large to evaluate here."""


def to_rational(text: str) -> Fraction | None:
    """The exact value, or None where the text is anything but bounded arithmetic. Raises ZeroDivisionError."""
    try:
        parser = _Parser(_tokens(text))
        value = parser.sum()
        parser.end()
    except (NotRationalError, RecursionError):
        return None
    return value


def to_rational_or_none(text: str) -> Fraction | None:
    """The exact value, or None for anything else, a division by zero included."""
    try:
        return to_rational(text)
    except ZeroDivisionError:
        return None


def same_percentage(gold: str, answer: str, expected: Fraction, value: Fraction, bare: bool) -> bool:
    """A sign that only the gold has is a unit that may be missing. One that only the answer has is a unit, too, where
    the gold is a bare number above 1: nobody means 3500 % by 35.
    """
    if gold.endswith("%"):
        return "%" not in answer and expected * 100 == value
    written = bare and DECIMAL.fullmatch(gold) is not None
    return written and answer.endswith("%") and abs(expected) > 1 and value == expected / 100


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be from a gold that is rounded: written with a point or as a power of ten."""

    significant_digits: int | None = None
    absolute: float | None = None

    def holds(self, gold: str, expected: Fraction, value: Fraction) -> bool:
        """Whether the value is within half a unit of the gold's last significant digit, or the absolute distance."""
        if not ROUNDED.search(gold):
            return False
        if self.absolute is not None and abs(expected - value) <= Fraction(str(self.absolute)):
            return True
        if self.significant_digits is None or expected == 0:
            return False
        magnitude = math.floor(math.log10(abs(expected)))
        return abs(expected - value) <= Fraction(10) ** (magnitude - self.significant_digits + 1) / 2


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_LENGTH or not text.isascii():
        raise NotRationalError
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise NotRationalError
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over sum, product, power, atom. Factors side by side are no product: 2 3 may be a list."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise NotRationalError

    def end(self) -> None:
        if self.peek():
            raise NotRationalError

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _bounded(value + self.product() if self.take() == "+" else value - self.product())
        return value

    def product(self) -> Fraction:
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= -1 if self.take() == "-" else 1
        value = self.power()
        while self.peek() in ("*", "/", "\\times", "\\cdot", "\\div"):
            operator = self.take()
            factor = self.power()
            value = _bounded(value / factor if operator in ("/", "\\div") else value * factor)
        return sign * value

    def power(self) -> Fraction:
        value = self.atom()
        while self.peek() in ("%", "\\%", "!"):
            value = value / 100 if self.take() != "!" else _factorial(value)
        if self.peek() == "^":
            self.take()
            value = _power(value, self.exponent())
        return value

    def exponent(self) -> Fraction:
        if self.peek() == "-":
            self.take()
            return -self.power()
        token = self.peek()
        if token.isdigit() and len(token) > 1:  # LaTeX's x^12 is x to the 1, then a 2; nobody means that
            return Fraction(self.take())
        return self.power()

    def atom(self) -> Fraction:
        token = self.take()
        if token == "\\frac":
            self.expect("{")
            numerator = self.sum()
            self.expect("}")
            self.expect("{")
            denominator = self.sum()
            self.expect("}")
            return _bounded(numerator / denominator)
        if token in ("(", "{"):
            value = self.sum()
            self.expect(")" if token == "(" else "}")
            return value
        if token[:1].isdigit() or token[:1] == ".":
            if len(token) > MAX_LENGTH - 1000:
                raise NotRationalError
            return Fraction(token)
        raise NotRationalError


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotRationalError
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise NotRationalError
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > MAX_BITS or size * abs(exponent) > MAX_BITS:
        raise NotRationalError
    return base ** int(exponent)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise NotRationalError
    product = 1
    for factor in range(2, int(value) + 1):
        product *= factor
    return Fraction(product)
