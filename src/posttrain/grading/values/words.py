"""Answers in words: labels of a choice, with their option or without, and words that mean one thing."""

import re

SHORT_WORDS = ("no", "yes", "odd")
WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*[A-Za-z.]")
IN_TEXT = re.compile(r"\\text ?\{([^{}]*+)\}")
LABEL = re.compile(r"\(?([A-Z])\)?\.?")
ANSWER = re.compile(
    r"^(?:(?:the )?(?:final |correct )?(?:answer|option|choice)(?: is)? ?:? ?)(?=\(?[A-Za-z]\)?\.?$)", re.I
)
OPTION = re.compile(
    r"^(?:\\text ?\{ ?)?(?:(\()([A-J])\)|([A-J])(?:[.)]|:(?= )|\)?[:.] )) ?[.:]?(?=[^ =]| [^=])(.+)$", re.DOTALL
)
OTHER_LABEL = re.compile(r"(?<![A-Za-z\\])\(?[A-J][.):] ")
CHOICES = "ABCDEFGHIJ"
LABELS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
MEANINGS = {
    "\\emptyset": "no solution", "no solutions": "no solution", "no real solution": "no solution",
    "no real solutions": "no solution", "there is no solution": "no solution", "there are no solutions": "no solution",
    "empty set": "no solution", "the empty set": "no solution", "all reals": "all real numbers",
    "(-\\infty,\\infty)": "all real numbers", "all real": "all real numbers", "all real values": "all real numbers",
    "the real numbers": "all real numbers", "real numbers": "all real numbers", "dne": "undefined",
    "does not exist": "undefined", "not defined": "undefined", "infinitely many": "\\infty",
    "infinitely many solutions": "\\infty", "infinity": "\\infty", "infinite": "\\infty",
}  # fmt: skip


def plain_words(answer: str) -> str:
    """The text without `\\text{}` around all of it, and without "Answer:" before a label."""
    inner = IN_TEXT.fullmatch(answer)
    return ANSWER.sub("", (inner.group(1) if inner else answer).strip())


def text_of(answer: str) -> str | None:
    """Words and labels in one form; None for anything with mathematics in it."""
    plain = plain_words(answer)
    if label := LABEL.fullmatch(plain):
        return label.group(1)
    words = WORDS.fullmatch(plain) is not None or (plain and not plain.isascii() and plain.isalpha())
    marked = plain != answer or len(plain) > 3 or plain.isupper() or plain.casefold() in SHORT_WORDS
    return plain.casefold().rstrip(".") if words and (marked or not plain.isascii()) else None


def meaning(answer: str) -> str:
    """One wording of what is said in several, such as "no solution" for the empty set; any other answer as it is."""
    plain = plain_words(answer).replace(", ", ",").casefold().rstrip(".")
    return MEANINGS.get(plain, plain if plain in MEANINGS.values() else answer)


def split_option(answer: str) -> tuple[str | None, str]:
    """`B. 42` as its label and its option; a text that names a second label is none."""
    match = OPTION.match(answer)
    if match is None:
        return None, answer
    option = match.group(4).strip()
    if answer.startswith("\\text"):
        option = option.replace("}", "", 1)
    return (None, answer) if not option or OTHER_LABEL.search(option) else (match.group(2) or match.group(3), option)


def as_choice(gold: str, answer: str) -> str | None:
    """The label that the answer chooses, where the gold is one: `c`, `(C)`, `C. 12`."""
    if len(gold) != 1 or gold not in CHOICES:
        return None
    plain = plain_words(answer).strip()
    label = LABEL.fullmatch(plain.upper()) if len(plain.strip("().")) == 1 else None
    return label.group(1) if label else split_option(answer)[0]
