"""Names before a value, and chains of equal values: `AB = 5`, `f(x) = 2x`, `(x,y) = (1,2)`, `8 * 9 = 72`."""

import re
from dataclasses import dataclass
from fractions import Fraction

SUBSCRIPT = r"(?:_(?:\w|\{[^{}]*+\}))?"
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Omega|Delta|ell"
LETTER = rf"(?:[A-Za-z]|\\(?:(?:{GREEK})(?![a-z])|vec ?\{{?[a-z]\}}?)){SUBSCRIPT}'{{0,3}}"
MARK = r"(?:\\(?:angle|triangle|overline|overrightarrow|widehat|measuredangle|text ?\{m\} ?\\angle) ?)?"
SEGMENT = rf"{MARK}\{{?[A-Z]+\}}?{SUBSCRIPT}'{{0,3}}"
FUNCTION = r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|det|gcd|text ?\{[A-Za-z]+\}) ?"
CALL = rf"(?:{LETTER}(?:\^\{{-1\}})?|{FUNCTION}) ?\([^()=]{{1,40}}\)"
WORDS = r"(?:\\text ?\{[^{}=]*+\}|[A-Za-z][a-z]{3,}(?: [A-Za-z]+){0,4}|[Ss]um)"
TUPLE = rf"\( ?{LETTER}(?: ?, ?{LETTER})+ ?\)"
RATIO = (
    rf"\\frac ?\{{ ?{SEGMENT} ?\}} ?\{{ ?{SEGMENT} ?\}}|{SEGMENT}(?: ?[:/] ?{SEGMENT})+|\| ?{SEGMENT} ?\||\|{LETTER}\|"
)
FUNCTION_OF = rf"\\(?:sin|cos|tan|cot|sec|csc|ln|log) ?(?:{SEGMENT}|{LETTER})|m ?\\angle ?{SEGMENT}"
NAME = re.compile(rf" ?(?:{LETTER}|{SEGMENT}|{CALL}|{WORDS}|{TUPLE}|{RATIO}|{FUNCTION_OF}) ?")
ARGUMENT = re.compile(r" ?[a-zA-Z]'? ?\( ?([a-z]) ?\) ?")
SIDES = re.compile(r"(?<![<>!:=\\])=(?!=)|\\equiv(?![a-z])")
APPROXIMATE = re.compile(r"\\(?:approx|simeq|doteq)(?![a-z])")
RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in)(?![a-z])")
LABELLED = re.compile(r"^(?:\\text ?\{ ?)?([A-Z][A-Za-z ]+|[A-Za-z ]{4,}) ?: ?(?:\} ?)?([^A-Za-z].*)$", re.DOTALL)
ONLY = re.compile(r"^\\text ?\{ ?only ?\} ?")
MEMBER = re.compile(rf"^ ?({LETTER}) ?\\in ?(.+)$", re.DOTALL)
SEVERAL = re.compile(r"[,;]| (?:and|or) ")
MAX_NAME = 100  # characters
TOLERANCE = 50  # a rounded value is within a fiftieth of the exact one


@dataclass(frozen=True)
class Named:
    """A name, and the sides of what it is equal to; an equation or chain of values has no name and several sides."""

    name: str | None
    sides: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        return self.name is None and len(self.sides) > 1

    @classmethod
    def read(cls, text: str, trusted: bool = False) -> "Named":
        """The parts of a text. Of one that is trusted, a gold, the last name in a chain counts: 2y = 4x = z = 8."""
        text = ONLY.sub("", text)
        if member := MEMBER.match(text):
            return cls(member.group(1), (member.group(2).strip(),))
        sides = sides_of(text)
        if len(sides) == 1 or RELATION.search(text) or (len(sides) > 2 and SEVERAL.search(text)):
            return cls(None, (text,))
        if trusted and len(sides) > 2 and is_name(sides[-2]):
            return cls(sides[-2], (sides[-1],))
        name = None
        while len(sides) > 1 and (not sides[0] or is_name(sides[0])):
            name = sides.pop(0) or name
        if name is None and len(sides) > 1 and is_name(sides[-1]) and not SEVERAL.search(text):  # 5 = x
            name = sides.pop()
        return cls(name, tuple(sides))


def is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and NAME.fullmatch(text) is not None


def sides_of(text: str) -> list[str]:
    """The sides of an equation or chain, without blanks around them; one for a text without any."""
    return [side.strip() for side in SIDES.split(text)]


def without_label(text: str, other: str) -> str:
    """`Total: 5` as 5."""
    labelled = LABELLED.match(text)
    return labelled.group(2) if labelled and ":" not in other + labelled.group(2) else text


def without_rounding(text: str) -> tuple[str, str | None]:
    """`\\frac13 \\approx 0.33` as \\frac13 and 0.33, `x \\approx 5` as 5 and None."""
    if not APPROXIMATE.search(text):
        return text, None
    first, *rest = (side.strip() for side in APPROXIMATE.split(text))
    last = rest[-1]
    if len(rest) == 1 and (not first or is_name(first)):
        return last, None
    return first, last


def is_rounded(exact: Fraction, rounded: Fraction) -> bool:
    return abs(exact - rounded) * TOLERANCE <= abs(exact)


def same_argument(left: Named, right: Named) -> tuple[str, str]:
    """The last sides of both, the variable of f(t) = 2t named as that of f(x) = 2x."""
    gold, answer = left.sides[-1], right.sides[-1]
    names = [ARGUMENT.fullmatch(name or "") for name in (left.name, right.name)]
    if names[0] and names[1] and names[0].group(1) != names[1].group(1):
        answer = re.sub(rf"(?<![\\A-Za-z]){names[1].group(1)}(?![A-Za-z])", names[0].group(1), answer)
    return gold, answer


def same_name(gold: str, answer: str) -> bool:
    """Whether two names stand for one thing: letter by letter, f(x) and f(t), or f(x) and y."""
    left, right = gold.replace(" ", ""), answer.replace(" ", "")
    if left == right:
        return True
    calls = [ARGUMENT.fullmatch(name) is not None for name in (left, right)]
    return all(calls) and left[0] == right[0] if calls[0] == calls[1] else "y" in (left, right)
