"""Intervals of real numbers, however they are written: brackets, inequalities, absolute values, set builders."""

import itertools
import re
from fractions import Fraction

from posttrain.grading.values.rational import to_rational_or_none

NAME = r"(?:[A-Za-z](?:\([A-Za-z]\))?|\\[a-z]+)"
BOUND = r"((?:(?!\\[lg]e(?![a-z])|\b(?:and|or)\b)(?:[^<>=,;]|,(?=\d{3}(?!\d))))+)"
DOUBLE_INEQUALITY = re.compile(rf"^{BOUND}(\\le|<|\\ge|>) ?({NAME}) ?(\\le|<|\\ge|>){BOUND}$")
INEQUALITY = re.compile(rf"^({NAME}) ?(\\le|<|\\ge|>){BOUND}$")
TURNED_INEQUALITY = re.compile(rf"^{BOUND}(\\le|<|\\ge|>) ?({NAME})$")
ABSOLUTE = re.compile(r"^\|([a-z]) ?(?:([+-]) ?([^|<>=]{1,40}))?\| ?(\\le|<|\\ge|>) ?([^|<>=]{1,40})$")
TURNED = {"\\le": "\\ge", "\\ge": "\\le", "<": ">", ">": "<"}
SET_BUILDER = re.compile(
    rf"^\\\{{ ?{NAME} ?(?:\\in ?(?:\\mathbb ?(?:R|\{{ ?R ?\}})|\(-\\infty ?, ?\\infty\)) ?)?(?:\||:|\\mid) ?(.+)\\\}}$"
)
OUTWARD = re.compile(r"^([\[\]]) ?([^\[\](),]+),([^\[\](),]+)([\[\]])$")
WRITTEN = re.compile(r"^[(\[] ?([^\[\](),]+),([^\[\](),]+)[)\]]$")
REAL_LINE = "(-\\infty,\\infty)"
REALS = re.compile(r"^(?:[a-z] ?\\in ?)?\\mathbb ?(?:R|\{ ?R ?\})$")
Interval = tuple[str, tuple[str, ...], str | None]


def interval_of(answer: str) -> Interval | None:
    """Brackets, the two ends, and the variable where one is named: `2 \\le x < 5` and `\\{x | 2 \\le x < 5\\}` are
    [2, 5), `x < 5` is (-\\infty, 5), `]2, 5[` is (2, 5). Intervals in their own brackets are containers like others.
    """
    built = SET_BUILDER.match(answer)
    answer = built.group(1).strip() if built else answer
    found = _outward(answer) or _absolute(answer) or _one_sided(answer) or _two_sided(answer)
    return (found[0], found[1], None) if found and built else found


def _outward(answer: str) -> Interval | None:
    """The bracket that looks away from an open end; [a, b] is left to the containers."""
    match = OUTWARD.match(answer)
    if match is None or (match.group(1) == "[" and match.group(4) == "]"):
        return None
    opening, low, high, closing = match.groups()
    kind = ("(" if opening == "]" else "[") + (")" if closing == "[" else "]")
    return kind, (low.strip(), high.strip()), None


def _absolute(answer: str) -> Interval | None:
    """`|x - 3| < 2` as (1, 5); what lies outside is a union."""
    match = ABSOLUTE.match(answer)
    if match is None:
        return None
    name, sign, shift, relation, bound = match.groups()
    radius, centre = to_rational_or_none(bound), to_rational_or_none(shift) if shift else Fraction(0)
    if radius is None or centre is None or radius <= 0:
        return None
    centre = -centre if sign == "+" else centre
    low, high = str(centre - radius), str(centre + radius)
    closed = relation in ("\\le", "\\ge")
    if relation in ("<", "\\le"):
        return ("[]" if closed else "()"), (low, high), name
    return "union", (f"(-\\infty,{low}{']' if closed else ')'}", f"{'[' if closed else '('}{high},\\infty)"), None


def _one_sided(answer: str) -> Interval | None:
    if turned := TURNED_INEQUALITY.match(answer):
        answer = f"{turned.group(3)} {TURNED[turned.group(2)]} {turned.group(1)}"
    one = INEQUALITY.match(answer)
    if one is None:
        return None
    name, relation, bound = one.groups()
    if relation in ("\\le", "<"):
        return ("(]" if relation == "\\le" else "()"), ("-\\infty", bound.strip()), name
    return ("[)" if relation == "\\ge" else "()"), (bound.strip(), "\\infty"), name


def _two_sided(answer: str) -> Interval | None:
    match = DOUBLE_INEQUALITY.match(answer)
    if match is None:
        return None
    low, first, name, second, high = match.groups()
    if (first in ("\\le", "<")) != (second in ("\\le", "<")):
        return None
    if first in ("\\ge", ">"):
        low, high, first, second = high, low, second, first
    opening = "[" if first in ("\\le", "\\ge") else "("
    closing = "]" if second in ("\\le", "\\ge") else ")"
    return opening + closing, (low.strip(), high.strip()), name


def without_points(whole: str, points: list[str]) -> tuple[str, ...] | None:
    """The intervals that are left of one without some points; None where their order is not known."""
    whole = REAL_LINE if REALS.match(whole) else whole
    match = WRITTEN.match(whole)
    if match is None or not points:
        return None
    low, high = (end.strip() for end in match.groups())
    values = {point: to_rational_or_none(point) for point in points}
    if len(points) > 1 or whole != REAL_LINE:
        ends = [to_rational_or_none(end) for end in (low, high) if "\\infty" not in end]
        if None in values.values() or None in ends:
            return None
        points = sorted(points, key=lambda point: values[point] or Fraction(0))
        least, most = _end(low), _end(high)
        if any(least is not None and least >= value for value in values.values() if value is not None):
            return None
        if any(most is not None and most <= value for value in values.values() if value is not None):
            return None
    bounds = [low, *points, high]
    parts = [f"({a},{b})" for a, b in itertools.pairwise(bounds)]
    parts[0] = whole[0] + parts[0][1:]
    parts[-1] = parts[-1][:-1] + whole[-1]
    return tuple(parts)


def _end(text: str) -> Fraction | None:
    return None if "\\infty" in text else to_rational_or_none(text)
