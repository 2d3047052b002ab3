"""Prose as words, values and punctuation: formulas, numbers, money, LaTeX with or without delimiters."""

import re
from dataclasses import dataclass

FORMULA = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>[^$\n]+)\$|\\\((?P<c>(?:(?!\\[()]).)+)\\\)|\\\[(?P<d>(?:(?!\\[\[\]]).)+)\\\]",
    re.DOTALL,
)
LONG_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
TEXT = re.compile(r"\\text ?\{[^{}]*+\}")
TOKEN = re.compile(
    r"(?P<text>\\(?:text[a-z]{0,8}|mbox|mathrm|operatorname) ?\{[^{}]*+\})|(?P<command>\\[A-Za-z]+|\\[{}%|]|\\!)"
    r"|(?P<money>\\?\$|[€£¥])"
    r"|(?P<number>\d+(?::\d+)+|\d+,\d\d?(?![\d,])|\d+(?:,\d{3})*(?!\d)(?:\.\d+)?%?|\d+(?:\.\d+)?%?|\.\d+%?)"
    r"|(?P<word>[A-Za-z][A-Za-z'’]*|[\u3400-\u9fff]+|[^\W\d_]+)|(?P<point>\.\.\.|[.,;:?!\"“”、，。；：…])|(?P<sign>[^\s\w])|(?P<under>_)"
)
MATHEMATICAL = {"sqrt", "pi", "sin", "cos", "tan", "ln", "log", "exp", "infinity", "inf", "cot", "sec", "csc"}
ARTICLES = {"a", "A", "I"}
OPENING, CLOSING = "([{", ")]}"
RELATIONS = "=<>≤≥≈≠"
VALUE = re.compile(r"[\dA-Za-z\\π∞]")
EDGES = " ,;:=+*<>≈·×&~"


@dataclass(frozen=True)
class Item:
    """A word, a value (an expression of any length) or a punctuation mark, and where it stands."""

    kind: str
    text: str
    start: int
    end: int
    delimited: bool = False

    @property
    def word(self) -> str:
        return self.text.lower().replace("’", "'") if self.kind == "word" else ""


def formulas(text: str, start: int = 0) -> list[re.Match[str]]:
    """The formulas between delimiters; the sign of money opens none."""
    found, position = [], start
    while match := FORMULA.search(text, position):
        if match.group("b") and _is_money(match.group("b")):
            position = match.start() + 1
        else:
            found.append(match)
            position = match.end()
    return found


def content_of(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _is_money(content: str) -> bool:
    """Whether the text between two dollar signs is prose: $40 - $30, ($105) + Lani ($230)."""
    if not content[0].isdigit():
        return False
    words = LONG_WORD.search(TEXT.sub("", content)) is not None
    return content[-1].isspace() or words or content.count("(") != content.count(")") or content[-1] in "+-=/"


def items(text: str) -> list[Item]:
    """The words, values and marks of a text, in order."""
    found, position = [], 0
    for formula in formulas(text):
        found += _plain_items(text, position, formula.start())
        content = content_of(formula)
        if content:
            found.append(Item("value", content, formula.start(), formula.end(), delimited=True))
        position = formula.end()
    return found + _plain_items(text, position, len(text))


def _plain_items(text: str, start: int, end: int) -> list[Item]:
    """Items outside formulas: tokens of mathematics that stand together are one value."""
    found: list[Item] = []
    run: list[re.Match[str]] = []
    depth = 0
    for token in TOKEN.finditer(text, start, end):
        kind = token.lastgroup
        inside = depth > 0 and kind == "point" and token.group() in ",;."
        if (kind in ("point",) and not inside) or (kind == "word" and not _is_mathematical(token, text, run)):
            found += _close(run, text)
            run, depth = [], 0
            found.append(Item("word" if kind == "word" else "mark", token.group(), token.start(), token.end()))
            continue
        depth += token.group() in ("(", "[", "{", "\\{")
        depth -= token.group() in (")", "]", "}", "\\}") and depth > 0
        run.append(token)
    return found + _close(run, text)


def _is_mathematical(token: re.Match[str], text: str, run: list[re.Match[str]]) -> bool:
    """Whether a word is a name of algebra: one letter, or a function; in a run, letters that follow without a blank."""
    word = token.group()
    if word.lower() in MATHEMATICAL:
        return True
    if not word.isascii():
        return False
    before = text[token.start() - 1 : token.start()]
    after = text[token.end() : token.end() + 2].strip()[:1]
    if len(word) == 1:
        near = (before in "+-*/^_=(0123456789{" and before != "") or (after != "" and after in "+-*/^_=({")
        return near or word not in ARTICLES
    glued = before in "_^{" and before != ""
    return (
        glued
        or (word.isupper() and len(word) <= 4 and after == "=")
        or (len(word) <= 3 and bool(run) and before.isdigit())
    )


def _close(run: list[re.Match[str]], text: str) -> list[Item]:
    """The run of tokens as a value, without operators and brackets at its edges that belong to the prose."""
    if not run:
        return []
    start, end = run[0].start(), run[-1].end()
    while start < end:
        piece = text[start:end]
        if piece[-1] in EDGES or piece[-1] == "-" or (piece[-1] == "$" and piece.count("$") == 1):
            end -= 1
        elif piece[0] in EDGES or (piece[0] == "-" and not piece[1:2].strip("-")):
            start += 1
        elif piece[-1] in OPENING or (piece[-1] in CLOSING and _balance(piece) < 0):
            end -= 1
        elif piece[0] in CLOSING or (piece[0] in OPENING and _balance(piece) > 0):
            start += 1
        elif piece[0] == "(" and piece[-1] == ")" and "(" not in piece[1:-1] and "," not in piece:
            start, end = start + 1, end - 1  # a remark
        else:
            break
    piece = text[start:end]
    return [Item("value", piece, start, end)] if VALUE.search(piece) else []


def _balance(piece: str) -> int:
    return sum((character in OPENING) - (character in CLOSING) for character in piece)
