"""Boxes: `\\boxed{…}`, `\\fbox{…}` and what models make of them."""

import re

MAX_NESTING = 200  # braces
MAX_BOXES = 50  # of one list, and of empty ones that are passed over
MAX_BETWEEN = 80  # characters between two boxes of one list
NAMES = ("\\boxed", "\\fbox", "\\framebox", "boxed{", "\boxed{")  # the backslash lost; \b read as one character
EMPTY = re.compile(
    r"[\s.…$?_*-]*(?:\\(?:ldots|dots|cdots|quad|text ?\{\s*\}|[,;! ])[\s.$]*)*(?:(?:your|final|the|insert)\b[a-z ]*)?"
)
BARE = re.compile(r"\s{1,9}(\\?[^\s{}$\\]+)")
JOINT = re.compile(  # what may part two boxes of one list: separators, the name of the next, the label of its part
    r"(?:[\s$,;:.=]|\\q?quad|\\[()\[\],; ]|\\text ?\{\s*(?:and|or)?\s*\}|and\b|or\b|\(?(?:[a-h1-9]|[ivx]{1,4})\)"
    r"|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
DELIMITER = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)[ \t]?\\?[{}.]")  # needs no partner in the same span
BRACE_AT_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,15}\{")
SEPARATES = re.compile(r"[,;=)]|and|or")


def box_start(text: str, end: int | None = None) -> int:
    """Where the last box before `end` begins, or -1."""
    end = len(text) if end is None else end
    start = _rfind(text, end)
    while start > 0 and text[start] == "b" and (text[start - 1].isalpha() or text[start - 1] == "\\"):
        start = start - 1 if text[start - 1] == "\\" else _rfind(text, start)
    return start


def _rfind(text: str, end: int) -> int:
    """The last name before `end`; the others are looked for only behind the most frequent one."""
    first, *others = NAMES
    start = text.rfind(first, 0, end)
    return max(start, *(text.rfind(name, start + 1, end) for name in others))


def last_boxed(text: str) -> str | None:
    """Content of the last box that is not empty; None where the last one never closes, or there is none."""
    found = _last(text, len(text))
    return found[1] if found else None


def boxes(text: str) -> str | None:
    """Content of the last box that is not empty; a list where others stand beside it that only a separator, the name of
    a value or the label of a part parts from it.
    """
    found = _last(text, len(text))
    if found is None:
        return None
    start, last = found
    contents = [last]
    while len(contents) < MAX_BOXES:
        earlier = box_start(text, start)
        if earlier < 0:
            break
        content = box_content(text[earlier:start])
        if content is None or not content.strip():
            break
        between = text[text.index(content, earlier) + len(content) + 1 : start]
        if len(between) > MAX_BETWEEN or not _joins(between):
            break
        contents.insert(0, content)
        start = earlier
    return ", ".join(dict.fromkeys(contents))


def _joins(between: str) -> bool:
    if JOINT.fullmatch(between) is None or "\n\n" in between:
        return False
    return not between or SEPARATES.search(between) is not None


def _last(text: str, end: int) -> tuple[int, str] | None:
    """Where the last box with a content begins, and the content. Empty ones, as in "put it in \\boxed{}", and dots are
    passed over.
    """
    for _ in range(MAX_BOXES):
        start = box_start(text, end)
        if start < 0:
            return None
        content = box_content(text[start:])
        if content is None:
            return None
        if not EMPTY.fullmatch(content):
            return start, content
        end = start
    return None


def box_content(text: str) -> str | None:
    """What stands in the box that begins the text; None where it never closes."""
    name = next(name for name in NAMES if text.startswith(name))
    rest = text[len(name.rstrip("{")) :]
    body = rest.lstrip()
    if body.startswith("{"):
        return _balanced(body)
    word = BARE.match(rest)
    return word.group(1).rstrip(".,") if word else None


def _balanced(text: str) -> str | None:
    """What stands between the opening brace of `text` and the brace that closes it."""
    depth, escaped = 0, False
    for position, character in enumerate(text):
        if character == "{" and not escaped:
            depth += 1
        elif character == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return text[1:position]
        if depth > MAX_NESTING:
            return None
        escaped = character == "\\" and not escaped
    return None


def is_broken(span: str) -> bool:
    """Whether a brace lacks its partner, or stands at a word that is no command: `\\{9}.`, `isboxed{9}`.

    Such a span is no prose but what is left of a box or a formula; a policy that were paid for it would unlearn both.
    """
    text = DELIMITER.sub(" ", span.replace("\\\\", " "))
    escaped = text.count("\\{"), text.count("\\}")
    plain = text.count("{") - escaped[0], text.count("}") - escaped[1]
    return escaped[0] != escaped[1] or plain[0] != plain[1] or BRACE_AT_WORD.search(text) is not None
