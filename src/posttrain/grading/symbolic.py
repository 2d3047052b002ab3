"""Algebra by Math-Verify, with guards on its yes. Runs only inside a process of `pool`, which can be killed."""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from posttrain.grading.values.exact import equal
from posttrain.grading.values.names import is_rounded
from posttrain.grading.values.rational import Tolerance, to_rational_or_none

DIGITS = 50
COMMAND = re.compile(r"\\[A-Za-z]+|\\.")
TEXT = re.compile(r"\\text\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[^{}]*\}")
IN_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")  # beside mathematics, where the parser drops it
POINTS = re.compile(
    r"(\\[A-Za-z]{1,20})?\s{0,3}\{?\s{0,3}(?<![A-Za-z])([A-Z]{2,})(?![A-Za-z])"
)  # an angle, a line, an order
BARE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
INDEXED = re.compile(r"(?:[\d})\]]|\\circ)\s*_|\\circ\s*\\?%")  # a base, or nothing; the parser drops it
TURNABLE = ("\\angle", "\\overline", "\\widehat", "\\measuredangle")
PARTED = re.compile(r"\\(?:to|[rR]ightarrow|implies|iff|land|mid)(?![a-z])")
FUNCTIONS = re.compile(r"\\(sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)")
DEGREES = re.compile(r"(?<![\d.])(\d++(?:\.\d++)?)\s{0,3}\^\s{0,3}\{?\s{0,3}\\circ\s{0,3}\}?")
CANARIES = (
    ("\\sqrt{8}", "2\\sqrt{2}", True),
    ("50\\%", "0.5", True),
    ("\\frac12", "\\frac{1}{2}", True),
    ("1", "1.0000001", False),
    ("2^{-80}", "2^{-81}", False),
)


def warm_up(canaries: Iterable[tuple[str, str, bool]] = CANARIES) -> str | None:
    """Import sympy and build Math-Verify's parser, which takes a second, before anybody waits for it.

    returns: the first canary that the installed packages decide wrongly, in words; None where all is well. The same
    Math-Verify reads `50\\%` as 50 with another antlr, and another sympy takes 1 for 1.0000001.
    """
    for gold, answer, expected in canaries:
        if _leaf(gold, answer) is not expected:
            return f"{answer!r} for gold {gold!r} is {not expected}, expected {expected}"
    return None


def symbolic_equal(gold: str, answer: str, tolerance: Tolerance | None = None) -> bool:
    """Whether two answers are equal, algebra included. May take for ever: call it through the pool."""

    def leaf(gold: str, answer: str, rounded: bool) -> bool:
        return _leaf(gold, answer, rounded) or (tolerance is not None and _is_near(gold, answer, tolerance))

    return equal(gold, answer, leaf, tolerance) is True


def _is_near(gold: str, answer: str, tolerance: Tolerance) -> bool:
    """Whether the answer is a number that a rounded gold may stand for."""
    expected, value = to_rational_or_none(gold), _number(answer)
    return expected is not None and value is not None and tolerance.holds(gold, expected, value)


def _leaf(gold: str, answer: str, rounded: bool = False) -> bool:
    from math_verify import verify

    gold, answer = _degrees(gold), _degrees(answer)
    if rounded:
        return _is_rounded(gold, answer)
    if _is_equation(answer) != _is_equation(gold) or _has_prime(answer) != _has_prime(gold):
        return False
    if _is_parted(answer) != _is_parted(gold) or bool(INDEXED.search(gold)) != bool(INDEXED.search(answer)):
        return False
    if _texts(gold) != _texts(answer) or _points(gold) != _points(answer):
        return False
    golds, answers = _parse(gold), _parse(answer)
    if not golds or not answers:
        return False
    expected, value = golds[0], answers[0]
    if not (_names_survive(gold, expected) and _names_survive(answer, value)) or _cases_differ(gold, answer):
        return False
    accepted = bool(verify(golds, answers, timeout_seconds=None)) or _equal_complex(expected, value)
    return accepted and not _values_differ(expected, value) and not _rounded(gold, answer, expected, value)


def _is_rounded(exact: str, rounded: str) -> bool:
    """Whether the second is a number, and the first rounds to it."""
    value, number = to_rational_or_none(rounded), _number(exact)
    return value is not None and number is not None and is_rounded(number, value)


def _number(text: str) -> Fraction | None:
    """The real number that an expression is, at 50 digits; None for anything else."""
    import sympy

    parsed = _parse(text)
    if not parsed or not isinstance(parsed[0], sympy.Expr) or not _names_survive(text, parsed[0]):
        return None
    number = sympy.N(_exact(parsed[0]), DIGITS)
    return Fraction(str(number)) if number.is_Float or number.is_Rational else None


def _parse(text: str) -> list[Any]:
    """Math-Verify's reading. In a box, and in brackets where a last letter is still lost as a unit."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found = parse(f"\\boxed{{{text}}}", configs, parsing_timeout=None)
    if found and not _names_survive(text, found[0]):
        found = parse(f"\\boxed{{({text})}}", configs, parsing_timeout=None)
    return found


def _degrees(text: str) -> str:
    """Degrees inside a function become radians; elsewhere they are a unit."""
    replacement = r"\\frac{\1\\pi}{180}" if FUNCTIONS.search(text) else r"\1"
    return DEGREES.sub(replacement, text)


def _is_equation(text: str) -> bool:
    return bool(re.search(r"(?<![<>!])=(?!=)|\\le|\\ge|<|>", text))


def _is_parted(text: str) -> bool:
    """Whether the text holds two things, of which the parser takes the last."""
    row = "\\\\" in text and "\\begin" not in text
    return row or bool(PARTED.search(text)) or text.count("|") % 2 == 1


def _texts(text: str) -> list[str]:
    """What is said in words beside mathematics."""
    return sorted(
        words.strip() for words in IN_TEXT.findall(text) + BARE_WORD.findall(TEXT.sub("", text)) if words.strip()
    )


def _points(text: str) -> list[str]:
    """Names of several points, whose order counts: the parser takes them for products. ABC is the angle CBA."""
    found = []
    for command, points in POINTS.findall(TEXT.sub(" ", text)):
        turned = points[::-1] if command in TURNABLE or (len(points) == 2 and not command) else points
        found.append(min(points, turned))
    return sorted(found)


def _has_prime(text: str) -> bool:
    """Whether something is a derivative, a second point or in feet; the parser drops the sign."""
    return "'" in text or "\\prime" in text


def _names_survive(text: str, parsed: Any) -> bool:
    """Every letter outside commands must be in what was parsed; a parser that drops some has read something else."""
    if not hasattr(parsed, "free_symbols"):
        return True
    names = "".join(str(symbol.name) for symbol in parsed.free_symbols).lower()
    functions = {name for name in ("f", "g", "h") if f"{name}(" in text}
    return {letter.lower() for letter in _letters(text)} - functions - {"e", "i"} <= set(names)


def _cases_differ(gold: str, answer: str) -> bool:
    """Math-Verify folds X into x; the same letters in another case are other names."""
    theirs, ours = _letters(gold), _letters(answer)
    return theirs != ours and {c.lower() for c in theirs} == {c.lower() for c in ours}


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]", COMMAND.sub(" ", TEXT.sub(" ", text))))


def _equal_complex(expected: Any, value: Any) -> bool:
    """Equality with `i` as the imaginary unit, which Math-Verify reads as a letter unless something marks it."""
    import sympy

    if not all(isinstance(x, sympy.Expr) for x in (expected, value)):
        return False
    unit = {s: sympy.I for s in expected.free_symbols | value.free_symbols if s.name == "i"}
    left, right = expected.subs(unit), value.subs(unit)
    if (left, right) == (expected, value) or left.free_symbols | right.free_symbols:
        return False
    return sympy.simplify(left - right) == 0


def _values_differ(expected: Any, value: Any) -> bool:
    """Two numbers, or entries of matrices, that differ relative to their size, at 50 digits; Math-Verify rounds, and
    cuts what is tiny to 0.
    """
    import sympy

    if all(isinstance(x, sympy.MatrixBase | sympy.MatrixExpr) for x in (expected, value)):
        expected, value = sympy.Matrix(expected.doit()), sympy.Matrix(value.doit())
        return expected.shape != value.shape or any(map(_values_differ, expected, value))
    if not all(isinstance(x, sympy.Expr) and not x.free_symbols for x in (expected, value)):
        return False
    left, right = sympy.N(_exact(expected), DIGITS), sympy.N(_exact(value), DIGITS)
    if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
        return False
    scale = max(abs(left), abs(right))
    return bool(scale != 0 and abs(left - right) > scale * sympy.Float(10) ** (8 - DIGITS))


def _exact(expression: Any) -> Any:
    """Written decimals as the fractions they are."""
    import sympy

    return expression.xreplace({x: sympy.Rational(str(x)) for x in expression.atoms(sympy.Float)})


def _rounded(gold: str, answer: str, expected: Any, value: Any) -> bool:
    """A decimal beside a number that is not exactly it."""
    one = to_rational_or_none(gold) is not None
    other = to_rational_or_none(answer) is not None
    if one == other:
        return False
    irrational = value if one else expected
    return getattr(irrational, "is_rational", None) is False
