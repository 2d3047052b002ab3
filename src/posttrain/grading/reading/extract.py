"""The answer a completion gives, found in time linear in its length, without backtracking."""

import re

REGION_BYTES = 64 * 1024  # the answer stands at the end; earlier text is not searched for it
MAX_ANSWER = 2000  # characters
MAX_NESTING = 200  # braces
MARKED = re.compile(r"^####[ \t]*(.+?)[ \t]*$", re.MULTILINE)  # GSM8K's own
SOLUTION = re.compile(r"^A:[ \t]*(.+?)[ \t]*$", re.MULTILINE)  # its model solutions'; or the first of some options
BOLD = re.compile(r"(?<![\w*])\*\*([^*\n]+)\*\*(?![\w*])")
PHRASE = re.compile(r"(?:answer\s{1,9}is\b\s{0,9}:?|answer(?:\*\*)?\s{0,9}:)[ \t]{0,9}(?=[^\s:])", re.IGNORECASE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL)
NUMBER = re.compile(r"((?<![A-Za-z\d.])[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?%)?)")
DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d\d?)$")  # in prose, where a list would have a space
WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{3,}|[\u3000-\ud7ff]")
LABEL = re.compile(r"^\(?([A-Z])\)?[,:)]\s+[a-z]{2}")  # "D, it does not matter why"
BARE = 200  # characters; up to here a completion without words is an answer as a whole
JOINT = re.compile(r"\}((?:[\s$,;]|\\q?quad|\\[()\[\],;]|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\band\b|\bor\b){0,40})$")
JOINTS = re.compile(r"[,;]|and|or")
MAX_BOXES = 50  # of one list
CONCLUSION = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?=(?:\*\*)?(?:\s|$))|\n")


def extract_answer(completion: str, lenient: bool = False) -> str | None:
    """The answer's text, or None where the completion gives none.

    Looked for after the last `</think>`, inside the last `<answer>` where there is one: the last `\\boxed{}` and those
    before it that only a comma, "and" or "or" parts from it; else the last line `#### x`; else what follows the last
    "answer is"; else the last line `A: x`; else all that stands in `<answer>`. A last box that never closes is no
    answer, whatever stands before it. `lenient` also takes what marks no answer; never train on that.
    """
    region = completion[-REGION_BYTES:]
    region = region.rpartition("</think>")[2]
    start = region.rfind("<answer>")
    if start >= 0:
        region = region[start + len("<answer>") :].partition("</answer>")[0]
    if lenient and (stated := _stated_last(region)):
        return _bounded(stated)
    if "\\boxed" in region or "\\fbox" in region:
        return _bounded(_last_boxes(region))
    if marked := MARKED.findall(region):
        return _bounded(_plain(marked[-1]))
    if phrases := [*PHRASE.finditer(region)]:
        answer = _plain(SENTENCE_END.split(region[phrases[-1].end() :], maxsplit=1)[0])
        label = LABEL.match(answer)
        answer = label.group(1) if label else answer
        return _bounded(_last_mathematics(answer) or answer if lenient else answer)
    if solutions := SOLUTION.findall(region):
        return _bounded(_plain(solutions[-1]))
    if start >= 0:
        return _bounded(_plain(region))
    return _bounded(_last_mathematics(region)) if lenient else None


def _plain(answer: str) -> str:
    """Without markdown's emphasis: `**42**`, and the half of it that is left of `**Answer: 42**`."""
    return BOLD.sub(r"\1", answer).strip().removeprefix("**").removesuffix("**").strip()


def _stated_last(region: str) -> str | None:
    """The formula of "the answer is $…$" where that comes after the last box."""
    after = region[max(region.rfind("\\boxed"), region.rfind("\\fbox"), 0) :]
    phrases = [*PHRASE.finditer(after)]
    formula = FORMULA.match(after, phrases[-1].end()) if phrases else None
    return next(group for group in formula.groups() if group) if formula and "boxed" not in formula.group() else None


def _last_mathematics(region: str) -> str | None:
    """What a reader would take for the answer of a text that marks none: its last formula, with those that are listed
    before it, else its last number; the number, too, where the formula only names something or a sentence after it
    concludes with the number. A short text without words is an answer as a whole.
    """
    formulas = [*FORMULA.finditer(region)]
    if not formulas and len(region) <= BARE and not WORD.search(region):
        return region
    end = formulas[-1].end() if formulas else 0
    numbers = [*NUMBER.finditer(region, end)]
    concluded = numbers and CONCLUSION.search(region, end, numbers[-1].start())
    if not formulas or concluded or (numbers and not re.search(r"\d", formulas[-1].group())):
        return DECIMAL_COMMA.sub(r"\1.\2", numbers[-1].group(1)) if numbers else None
    listed = [formulas[-1]]
    for formula in reversed(formulas[:-1]):
        between = region[formula.end() : listed[0].start()]
        if not JOINTS.search(between) or re.sub(r"[\s,;]|and|or", "", between):
            break
        listed.insert(0, formula)
    return ", ".join(next(group for group in formula.groups() if group) for formula in listed)


def _last_boxes(text: str) -> str | None:
    """Content of the last box; a list where boxes stand side by side as one."""
    last, start = last_boxed(text), max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    contents = [] if last is None else [last]
    while contents and len(contents) < MAX_BOXES:
        joint, earlier = JOINT.search(text, max(0, start - 60), start), text.rfind("\\boxed", 0, start)
        if joint is None or earlier < 0 or joint.start() - earlier > MAX_ANSWER:
            break
        content, between = last_boxed(text[earlier : joint.start() + 1]), joint.group(1)
        whole = content is not None and len("\\boxed{}") + len(content) == joint.start() + 1 - earlier
        if content is None or not whole or (between and not JOINTS.search(between)):
            break
        contents.insert(0, content)
        start = earlier
    return ", ".join(dict.fromkeys(contents)) if contents else None


def has_box(completion: str) -> bool:
    """Whether the last box of the completion is complete: the format that the boxed prompts ask for."""
    return last_boxed(completion[-REGION_BYTES:]) is not None


def has_closed_answer(completion: str) -> bool:
    """Whether the answer has an end of its own: a box with its closing brace, or `</answer>`."""
    region = completion[-REGION_BYTES:].rpartition("</think>")[2]
    return "</answer>" in region or bool(re.search(r"\\(?:boxed|fbox)\s*\{", region) and last_boxed(region))


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{…}`, `\\fbox{…}` or `\\boxed 8`; None where it never closes or there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    body = rest.lstrip()
    if not body.startswith("{"):
        word = re.match(r"\s*(\\?[^\s{}$\\]+)", rest)
        return word.group(1).rstrip(".,") if word and rest[:1].isspace() else None
    return _balanced(body)


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


def _bounded(answer: str | None) -> str | None:
    """The answer without outer blanks, or None where it is empty or too long to be one."""
    answer = (answer or "").strip()
    return answer if 0 < len(answer) <= MAX_ANSWER else None
