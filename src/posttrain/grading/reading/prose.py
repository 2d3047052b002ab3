"""The answer in a piece of prose: what stands behind "the answer is", in `<answer>`, or on a line `#### …`.

Grammar decides: a value that opens the text and is followed by a noun, a clause or nothing; the only value that is not
governed by a preposition; the only emphasised one; what stands behind the last "is". Where it does not decide between
several, or a word makes another value of the one it stands beside ("at least 5", "5 and a half"), there is no answer.
"""

import re

from posttrain.grading.reading.boxes import is_broken
from posttrain.grading.reading.clauses import (
    ADVERBS,
    ARTICLES,
    BOUNDS,
    COPULAS,
    CORRECTIONS,
    FILLERS,
    HEDGES,
    MODALS,
    NEGATIONS,
    ORDINALS,
    PREPOSITIONS,
    SUBORDINATORS,
    VERDICTS,
)  # fmt: skip
from posttrain.grading.reading.tokens import Item, items
from posttrain.grading.values.number_words import PARTS, SCALES, read_number_words
from posttrain.grading.values.unit_table import AFTER, CHINESE_CHANGES, KNOWN
from posttrain.grading.values.units import read_unit

MAX_SPAN = 2000  # characters
MAX_WORDS = 12  # of an answer without a value
ABBREVIATIONS = (
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<!\bapprox)(?<!\b[A-Za-z])"
    r"(?<!\b[ap]\.m)(?<!\bsq)"
)
SENTENCE_END = re.compile(rf"{ABBREVIATIONS}[.!?](?=[*_\"')\]]{{0,3}}(?:\s|$))|[。．]|\n")
BOLD = re.compile(r"(?<![\w*])(?:\*\*|__)([^*_\n]+)(?:\*\*|__)(?![\w*])")
EMPHASIS = re.compile(
    r"(?<![\w)}])\*\*|\*\*(?![\w(\\{])|__(?=[\w\s(\\$-])|(?<=[\w\s).$])__|`|(?<![\w*)}])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w*(\\{])"
)
LABEL = re.compile(
    r"(?:(?:option|choice|answer)\s)?(\(([A-J])\)|([A-J])(?=[.):,;]|\s*$|\s(?:because|since|as|is|and|or|which)\b))",
    re.I,
)
LETTER_BEFORE = re.compile(r"[AI]\s(?:because|since|as|is|and|or|which)\b")
ALTERNATIVE = re.compile(r"[.)]?\s(?:or|and)\s\(?[A-J]\b")
LOWER_LABEL = re.compile(r"\(?([a-j])\)?\.?")
OPTION = re.compile(r"\(?[A-J][.):]\)?\s*\S")
HALF_DAY = re.compile(r"(?<=\d) ?([ap])\. ?m\b\.?", re.I)
LIST_MARK = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s+(?=\S)")


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence or line; an option such as `B. 42` is one."""
    start = 2 if re.match(r"\(?[A-J][.)]\s", text) else 0
    end = SENTENCE_END.search(text, start)
    return text[: end.start()] if end else text


def read_span(span: str) -> str | None:
    """The answer that a sentence states, or None where it states none for certain, or its markup is broken."""
    if is_broken(span):
        return None
    span = HALF_DAY.sub(r" \1m", span[:MAX_SPAN]).strip().strip('"“”')
    bold = [item for match in BOLD.finditer(span) for item in items(match.group(1)) if item.kind == "value"]
    text = EMPHASIS.sub("", span).strip().rstrip(".,;: ").lstrip(":=≈ ")
    if not text:
        return None
    if label := _label(text):
        return label
    found = items(text)
    if not any(item.kind == "word" for item in found):
        return _only_mathematics(text, found)
    values = [index for index, item in enumerate(found) if item.kind == "value" and not _is_ordinal(found, index)]
    if any(re.search(r"[\d\\]", found[index].text) for index in values):
        values = [i for i in values if found[i].delimited or re.search(r"[\d\\=]", found[i].text)]
    if not values:
        return (
            None if any(item.kind == "value" and re.search(r"\d", item.text) for item in found) else _words(text, found)
        )
    chosen = _listed(found, values) or _choose(found, values, [item.text for item in bold])
    return _with_unit(found, chosen) if isinstance(chosen, int) else chosen


def _label(text: str) -> str | None:
    """A choice that opens the text, with its option where that stands behind a bracket or point."""
    if LOWER_LABEL.fullmatch(text):
        return text
    match = LABEL.match(text)
    if match is None or (text[0] in "aAI" and text[1:2] == " " and not LETTER_BEFORE.match(text)):
        return None
    if ALTERNATIVE.match(text[match.end(1) :]):
        return text  # several, of which none is chosen
    letter = match.group(2) or match.group(3)
    rest = text[match.end() :].lstrip()
    if letter.islower() and text.lower().startswith(letter):
        return None
    if rest.startswith(",") and re.match(r",\s?\S{0,3}(?:,|$|\s?(?:and|or)\b)", rest):
        return text  # several of them
    option = text[match.start(1) :]
    return option if (OPTION.match(option) and rest[:1] in (".", ")", ":")) or (match.group(2) and rest) else letter


def _only_mathematics(text: str, found: list[Item]) -> str | None:
    if len(found) == 1 and found[0].kind == "value":
        return found[0].text
    return text


def _is_ordinal(found: list[Item], index: int) -> bool:
    """Whether the number names a step, a part or an equation."""
    before = found[index - 1] if index else None
    return before is not None and before.word.rstrip("s") in ORDINALS and not found[index].delimited


def _words(text: str, found: list[Item]) -> str | None:
    """An answer in words: a number in words, or the text up to its first clause."""
    words = list(found)
    while words and words[0].word in ADVERBS:
        words.pop(0)
    for count in range(min(len(words), 8), 0, -1):
        phrase = text[words[0].start : words[count - 1].end]
        if read_number_words(phrase) is not None:
            after = words[count].word if count < len(words) else ""
            if after == "percent":
                return f"{phrase} percent"
            return None if after in PARTS or after in AFTER else (phrase if after not in ("of", "or") else None)
    end = next((item.start for item in words if item.kind == "mark" or item.word in SUBORDINATORS), len(text))
    answer = text[words[0].start : end].strip() if words else ""
    return answer if answer and len(answer.split()) <= MAX_WORDS else None


def is_verdict(answer: str | None) -> bool:
    """Whether the words say that an answer is right, in place of one: "the answer is correct"."""
    return answer is not None and bool(answer.split()) and answer.split()[0].lower().strip(".,!") in VERDICTS


def _listed(found: list[Item], values: list[int]) -> str | None:
    """Several values that only separators part, with nothing else around them but fillers."""
    first, last = values[0], values[-1]
    if len(values) > 1 and all(i and found[i - 1].text == ":" for i in values):  # least: 2, greatest: 9
        return ", ".join(f"{found[i - 2].text}: {found[i].text}" for i in values)
    if len(values) < 2 or any(item.word not in FILLERS for item in found[:first]) or found[last + 1 :]:
        return None
    between = [found[i] for i in range(first, last) if i not in values]
    if not all(item.text in (",", ";", "、", "，", "；") or item.word in ("and", "or", "或", "和") for item in between):
        return None
    return ", ".join(found[index].text for index in values)


def _choose(found: list[Item], values: list[int], bold: list[str]) -> int | None:
    """Which of the values is the answer."""
    if any(item.word in CORRECTIONS for item in found):
        return None
    mains = [i for i in values if not _is_negated(found, i) and not _is_governed(found, i)]
    emphasised = [i for i in values if found[i].text in bold]
    if len(bold) == 1 and len(emphasised) == 1 and not _is_negated(found, emphasised[0]):
        return _certain(found, values, emphasised[0])
    opens = _opens(found, values[0]) and not _is_negated(found, values[0])
    if opens and _is_clause_end(found, values[0], values):
        return _certain(found, values, values[0])
    candidates = mains or [i for i in values if not _is_negated(found, i)]
    if len(candidates) != 1:
        copulas = [index for index, item in enumerate(found) if item.word in COPULAS]
        candidates = [i for i in candidates if copulas and i > copulas[-1]]
    return _certain(found, values, candidates[0]) if len(candidates) == 1 else None


def _opens(found: list[Item], index: int) -> bool:
    return all(item.word in FILLERS or item.text in (",", ":") for item in found[:index])


def _is_negated(found: list[Item], index: int) -> bool:
    return any(item.word in NEGATIONS or item.word.endswith("n't") for item in found[max(0, index - 2) : index])


def _is_governed(found: list[Item], index: int) -> bool:
    """Whether the value is the object of a preposition: over 30 days, of the 3 shirts."""
    before = index - 1
    if before > 0 and found[before].word in ("and", "or") and found[before - 1].kind == "value":
        return _is_governed(found, before - 1)
    while before >= 0 and found[before].word in ARTICLES:
        before -= 1
    return before >= 0 and found[before].word in PREPOSITIONS


def _is_clause_end(found: list[Item], index: int, values: list[int]) -> bool:
    """Whether the value, with a noun or unit behind it, is all of its clause."""
    after = index + 1
    for _ in range(4):
        if after >= len(found) or found[after].kind == "mark" or found[after].word in SUBORDINATORS:
            break
        if found[after].kind == "value" or found[after].word in PREPOSITIONS | COPULAS:
            break
        after += 1
    if after >= len(found):
        return True
    item = found[after]
    if item.word in ("and", "or") or item.text in (",", "、", "，"):
        return after + 1 >= len(found) or found[after + 1].kind != "value"
    if item.kind == "mark" or item.word in SUBORDINATORS:
        return True
    return item.word in PREPOSITIONS and len(values) == 1


def _certain(found: list[Item], values: list[int], index: int) -> int | None:
    """The value, unless a word makes another of it or another value is offered in its place."""
    before = [item.word for item in found[max(0, index - 2) : index]]
    if before and (
        before[-1] in BOUNDS or (before[-1] in ("than", "to") and before[0] in ("more", "less", "up", "fewer"))
    ):
        return None
    after = found[index + 1 : index + 4]
    rest = found[index + 1 :]
    if any(item.word in HEDGES for item in rest) and len(values) > 1 and values[-1] > index:
        return None
    if any(item.word in HEDGES for item in found[:index]) and len(values) > 1:
        return None
    if before and (before[-1] in ("maybe", "perhaps", "possibly") or (before[-1] == "be" and before[0] in MODALS)):
        return None
    return None if _is_changed(after) else index


def _is_changed(after: list[Item]) -> bool:
    """Whether the words behind a value change it: 5 and a half, 5 or more, 5 squared, 5 out of 7, 5 times 3."""
    words = [item.word for item in after] + ["", "", ""]
    values = [item.kind == "value" for item in after] + [False] * 3
    if words[0] in ("and", "or", "&"):
        rest = words[2] if words[1] in ("a", "an", "one") else words[1]
        return rest.rstrip("s") in PARTS or rest in (
            "not",
            "more",
            "less",
            "fewer",
            "so",
            "above",
            "below",
            "higher",
            "halves",
            "lower",
        )
    if words[0] in (
        "plus",
        "minus",
        "times",
        "divided",
        "multiplied",
        "mod",
        "modulo",
        "over",
        "through",
        "choose",
        "to",
    ):
        return (
            values[1] or words[1] in ("as", "by", "a", "the", "more") or words[0] in ("plus", "minus", "mod", "modulo")
        )
    if words[0] == "out" or (words[0] in ("of", "in", "per") and values[1]):
        return True
    if words[0] == "halves" or (words[0] not in KNOWN and words[0][:1] in CHINESE_CHANGES and words[0] != ""):
        return True
    part = words[0].rstrip("s") in PARTS and words[0] not in ("second", "quarter")
    return words[0] in AFTER or words[0] == "factorial" or part or words[0] in ("k", "lakh", "lakhs", "crore", "crores")


def _with_unit(found: list[Item], index: int) -> str:
    """The value with its sign in words, its scale and its unit, where that is one that is known."""
    text = found[index].text
    if index and found[index - 1].word in ("negative", "minus"):
        text = f"-{text}"
    phrase, best, known = "", "", read_unit("units")
    for item in found[index + 1 : index + 6]:
        if (item.kind != "word" and item.text != "/") or (not phrase and item.word == "in" and item is not found[-1]):
            break
        if not phrase and item.word in ("percent", "percentage"):
            return f"{text}\\%"
        phrase = f"{phrase} {item.text}"
        if item.word in SCALES and not best:
            text, phrase = f"{text} {item.word}", ""
            continue
        unit = read_unit(phrase)
        if unit is not None and unit != known and not any(name.startswith("noun") for name, _ in unit.dimension):
            best, known = phrase, unit
    return f"{text}\\text{{{best}}}" if best else text


def starts_list(line: str) -> bool:
    return LIST_MARK.match(line) is not None
