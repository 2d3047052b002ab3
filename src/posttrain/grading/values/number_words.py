"""Numbers in words: `twelve`, `twenty-one`, `three hundred and five`, `one half`, `two thirds`."""

import re
from fractions import Fraction

SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
NUMBER_WORDS = SMALL | TENS | SCALES
SEPARATORS = re.compile(r"[ -]+")
MAX_WORDS = 20


def read_number_words(text: str) -> Fraction | None:
    """The number that the words are, or None for any other text."""
    words = SEPARATORS.split(text.strip().lower())
    if len(words) > MAX_WORDS or not words[0]:
        return None
    sign = -1 if words[0] in ("negative", "minus") else 1
    words = words[1:] if sign < 0 else words
    part = PARTS.get(words[-1]) or PARTS.get(words[-1].removesuffix("s")) if words else None
    if words and words[-1] == "halves":
        part = 2
    count = _whole(words[:-1] if part else words)
    if part and words[:-1] in (["a"], ["an"]):
        count = 1
    return None if count is None else Fraction(sign * count, part or 1)


def _whole(words: list[str]) -> int | None:
    """A whole number in English words; every word must continue what stands before it."""
    total, group, open_tens, expects = 0, None, False, True
    for word in words:
        if word == "and":
            if expects:
                return None
            expects = True
        elif word in SMALL and (group is None or (open_tens and 0 < SMALL[word] < 10) or group % 100 == 0 != group):
            group, open_tens, expects = (group or 0) + SMALL[word], False, False
        elif word in TENS and (group is None or group % 100 == 0 != group):
            group, open_tens, expects = (group or 0) + TENS[word], True, False
        elif word == "hundred" and group is not None and 0 < group < 100:
            group, open_tens, expects = group * 100, False, False
        elif word in SCALES and word != "hundred" and group is not None:
            total, group, open_tens, expects = total + group * SCALES[word], None, False, False
        else:
            return None
    return None if expects else total + (group or 0)
