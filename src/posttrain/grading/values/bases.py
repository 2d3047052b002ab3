"""Numerals in a base: 1011_2, (1011)_2, 52_{\\text{eight}}, 3A base 16, and arithmetic of them."""

import re

from posttrain.grading.values.number_words import NUMBER_WORDS

DIGITS = r"[0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?"
NAME = r"(?:[a-z]+|\d+)"
NUMERAL = re.compile(
    rf"(?<![0-9A-Za-z.\\_{{])(?:\( ?)?({DIGITS}) ?(?:\) ?)?"
    rf"(?:_ ?(?:\{{ ?(?:\\text ?\{{ ?)?({NAME}) ?\}}? ?\}}|(\d+))"
    rf"|(?:\\text ?\{{ ?)?(?:\( ?)?(?:in )?base[ -]({NAME}) ?\)? ?\}}?)"
)
MARKED = re.compile(r"[0-9A-Fa-f)] ?_|base")
LARGEST = 36


def read_bases(text: str) -> tuple[str, tuple[int, ...]]:
    """The text with its numerals written as `1011_{2}`, and their bases in order; no base where there is none."""
    if not MARKED.search(text):
        return text, ()
    bases: list[int] = []

    def write(match: re.Match[str]) -> str:
        digits, *names = match.groups()
        base = _base(next(name for name in names if name))
        if base is None or any(int(digit, 36) >= base for digit in digits.replace(".", "")):
            return match.group()
        bases.append(base)
        return f"{digits.upper()}_{{{base}}}"

    return NUMERAL.sub(write, text).replace(" ", ""), tuple(bases)


def _base(name: str) -> int | None:
    base = int(name) if name.isdigit() and len(name) < 3 else NUMBER_WORDS.get(name)
    return base if base is not None and 2 <= base <= LARGEST else None
