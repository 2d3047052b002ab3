"""Names that anybody may choose: a constant of integration, the integer that numbers a family of solutions."""

import re

CONSTANT = re.compile(r"\+ ?([CcKkD])$")
MEMBER = re.compile(
    r"[,;]? ?\(?(?:\\text ?\{[A-Za-z ]{0,30}\} ?)?(?:where |for |with )?([a-z]) ?\\in ?\\mathbb ?"
    r"(?:\{ ?([ZN]) ?\}|([ZN]))(?:\^ ?\+|_ ?\+)? ?\)?$"
)
LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
PARAMETER = re.compile(r"(?<![\\A-Za-z])([kmn])(?![A-Za-z])")


def renamed(gold: str, answer: str) -> tuple[str, str]:
    """The two texts, with the constant or the integer of the answer named as that of the gold."""
    gold, answer = _same_constant(gold, answer)
    left, right = MEMBER.search(gold), MEMBER.search(answer)
    if left and right and left.group(2, 3) != right.group(2, 3):
        return gold, answer
    expected, value = gold[: left.start()] if left else gold, answer[: right.start()] if right else answer
    if not expected or not value:
        return gold, answer
    name = left.group(1) if left else _parameter(expected)
    other = right.group(1) if right else _parameter(value)
    if name is None or other is None:
        return gold, answer
    if name != other and not _holds(expected, other) and not _holds(value, name):
        value = _rename(value, other, name)
    return expected, value


def _parameter(text: str) -> str | None:
    """The one integer of a family such as \\frac{\\pi}{5} + k\\pi."""
    letters = set(PARAMETER.findall(text)) if "\\pi" in text else set()
    return letters.pop() if len(letters) == 1 else None


def _same_constant(gold: str, answer: str) -> tuple[str, str]:
    left, right = CONSTANT.search(gold), CONSTANT.search(answer)
    if left is None or right is None or left.group(1) == right.group(1):
        return gold, answer
    name, other = left.group(1), right.group(1)
    body, rest = gold[: left.start()], answer[: right.start()]
    if name != "C" and len(set(LETTERS.findall(body)) - {"e"}) > 1:  # a + b + c has no constant
        return gold, answer
    if _holds(body, name) or _holds(rest, other) or _holds(rest, name):
        return gold, answer
    return gold, f"{rest}+ {name}"


def _holds(text: str, letter: str) -> bool:
    return _letter(letter).search(text) is not None


def _rename(text: str, old: str, new: str) -> str:
    return _letter(old).sub(new, text)


def _letter(letter: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])")
