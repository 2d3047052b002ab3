"""One grader for rewards, rejection sampling and evaluation: the last complete box of a completion against the gold.

First cut: numbers are compared exactly, anything else as normalised text.
"""

import re
from enum import StrEnum
from fractions import Fraction

MAX_DIGITS = 1000  # Python's own conversion of longer numbers is quadratic; nobody's answer is that long
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(/\d+)?")
COMMAS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([+-]?\d+)\}\{(\d+)\}")


class Verdict(StrEnum):
    """What became of one sample. Every sample has exactly one, so the counts add up to the number of samples."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # the model stopped, and there is no complete box
    TRUNCATED = "truncated"  # the model was cut off before a complete box
    TIMEOUT = "timeout"
    ERROR = "error"


def grade(gold: str, completion: str, truncated: bool) -> tuple[Verdict, str | None]:
    """The verdict on a completion and the answer it gave, or None where it gave none."""
    answer = last_boxed(completion)
    if answer is None:
        return (Verdict.TRUNCATED if truncated else Verdict.UNPARSED), None
    return (Verdict.CORRECT if equal_answers(gold, answer) else Verdict.WRONG), answer


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{…}` whose braces close, or None."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            escaped = text[position - 1] == "\\"
            if text[position] in "{}" and not escaped:
                depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start:position].strip()
    return None


def equal_answers(gold: str, answer: str) -> bool:
    """Equal as exact numbers where both are numbers, else equal as text without spaces, `$` and a final point."""
    gold_number, number = to_number(gold), to_number(answer)
    if gold_number is not None and number is not None:
        return gold_number == number
    return normalise(gold) == normalise(answer) != ""


def normalise(text: str) -> str:
    """The text without what never changes an answer: spaces, dollar signs, `\\!`, and a full stop at the end."""
    return re.sub(r"\\[!,;: $]|[\s$]|\\left|\\right", "", text).removesuffix(".")


def to_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction or thousands-separated number, or None."""
    text = FRACTION.sub(r"\1\2/\3", normalise(text))
    if COMMAS.fullmatch(text):
        text = text.replace(",", "")
    if len(text) > MAX_DIGITS or not NUMBER.fullmatch(text) or not text.isascii():
        return None
    numerator, _, denominator = text.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)
