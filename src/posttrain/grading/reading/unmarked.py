"""The answer of a text that marks none, for comparison with graders that look for one; never for training."""

import re

from posttrain.grading.reading.boxes import box_start
from posttrain.grading.reading.prose import EMPHASIS, first_sentence, read_span
from posttrain.grading.reading.tokens import content_of, formulas, items

BARE = 200  # characters; up to here a completion without words is an answer as a whole
TAIL = 2000  # characters at the end, where the last number is looked for
WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|exp|log|inf|infinity|frac)\b)[^\W\d_]{3,}|[\u3000-\ud7ff]")
DECIMAL_COMMA = re.compile(r"([+-]?\d{1,30}),(\d\d?)")  # in prose, where a list would have a space
JOINT = re.compile(r"(?:[\s,;]|and|or)*")
JOINTS = re.compile(r"[,;]|and|or")
CONCLUSION = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
CORRECTION = re.compile(
    r"^\W{0,9}[^\n.]{0,40}[.,]?\s{0,3}\b(?:no|wait|actually|sorry|correction)\b[,.:!]?\s{1,3}"
    r"(?:(?:it|that|this|the answer)(?:'s| is| should be| must be)\s|(?=[\d$\\-]))",
    re.I,
)
GLUED_UNIT = re.compile(r"([+-]?[\d.,]{0,40}\d)[A-Za-z]{1,3}[²³]?")
LETTER = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|finalize|select|choose|it'?s|is|est|es|ist)\s+(?:\*\*)?\(?([A-J])\b|\(([A-J])\)|\*\*([A-J])[.):]?\*\*"
    r"|(?<![A-Za-z.])([A-J])(?:[.):]?\s*\Z|[.)]\s|。|:\s|\s+is\s+(?:the\s+)?(?:correct|right|answer)))"
)
OPTIONS = re.compile(r"(?<![A-Za-z.])([A-J])[.):]\s")
NEGATED = re.compile(r"(?:\b(?:not|isn't|never|non)\s+(?:\w+\s+)?|不是\s?)\(?\Z", re.I)
LAST_LABEL = re.compile(r"(?:\*\*)?\(?([A-Ja-j])\)?[.)]?(?:\*\*)?")


def stated_last(region: str, phrase: re.Pattern[str]) -> str | None:
    """The formula of "the answer is $…$" where that comes after the last box."""
    after = region[max(box_start(region), 0) :]
    marks = [*phrase.finditer(after)]
    found = formulas(after[: marks[-1].end() + TAIL], marks[-1].end())[:1] if marks else []
    if not found or found[0].start() != marks[-1].end() or "boxed" in found[0].group():
        return None
    return content_of(found[0])


def corrected(sentence: str, rest: str) -> str:
    """The sentence, or the next one where that takes it back: "No, it is 43"."""
    correction = CORRECTION.search(rest)
    if correction is None:
        return sentence
    other = first_sentence(rest[correction.end() :])
    return other if re.search(r"\d|\\[a-z]", other) and read_span(other) else sentence


def last_mathematics(region: str) -> str | None:
    """What a reader would take for the answer of a text that marks none: its last formula, with those that are listed
    before it, else its last value; the value, too, where the formula only names something or a sentence after it
    concludes with the value; else its last choice. A short text without words is an answer as a whole.
    """
    region = region.strip()
    found = formulas(region)
    if not found and len(region) <= BARE and not WORD.search(region):
        label = LAST_LABEL.fullmatch(region)
        return label.group(1) if label else region.rstrip(".")
    lines = region.splitlines()
    if lines and (label := LAST_LABEL.fullmatch(lines[-1].strip())):
        return label.group(1)
    end = found[-1].end() if found else 0
    value = _last_value(region, end)
    concluded = value and CONCLUSION.search(region, end)
    if not found or concluded or (value and not re.search(r"\d", found[-1].group())):
        return value or _last_letter(region)
    listed = [found[-1]]
    for formula in reversed(found[:-1]):
        between = region[formula.end() : listed[0].start()]
        if not JOINTS.search(between) or not JOINT.fullmatch(between):
            break
        listed.insert(0, formula)
    return ", ".join(map(content_of, listed))


def _last_value(region: str, start: int) -> str | None:
    """The last number or expression that is no number of a step."""
    tail = EMPHASIS.sub("", region[max(start, len(region) - TAIL) :])
    found = items(tail)
    for index in range(len(found) - 1, -1, -1):
        item = found[index]
        before = found[index - 1].word if index else ""
        if item.kind == "value" and re.search(r"\d", item.text) and before not in ("step", "part", "question"):
            percent = index + 1 < len(found) and found[index + 1].word == "percent"
            if glued := GLUED_UNIT.fullmatch(item.text):
                return None if tail[item.start - 1 : item.start].isalpha() else glued.group(1)
            text = DECIMAL_COMMA.sub(r"\1.\2", item.text) if DECIMAL_COMMA.fullmatch(item.text) else item.text
            return f"{text}%" if percent else text
    return None


def _last_letter(region: str) -> str | None:
    """The last choice that is named and not refused; none where the options themselves are listed."""
    tail = region[-TAIL:]
    listed = len(set(OPTIONS.findall(tail))) > 1
    for match in reversed([*LETTER.finditer(tail)]):
        if not NEGATED.search(tail, max(0, match.start() - 20), match.start()) and not (listed and match.group(4)):
            return next(group for group in match.groups() if group)
    return None
