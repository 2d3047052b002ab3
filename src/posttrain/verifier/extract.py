"""The answer a completion gives, found in time linear in its length, without backtracking."""

import re

REGION_BYTES = 64 * 1024  # the answer stands at the end; earlier text is not searched for it
MAX_ANSWER = 2000  # characters
MAX_NESTING = 200  # braces
MARKED = re.compile(r"^(?:####|A:)[ \t]*(.+?)[ \t]*$", re.MULTILINE)  # GSM8K's own, and its model solutions'
PHRASE = re.compile(r"(?:answer\s{1,9}is\b\s{0,9}:?|answer\s{0,9}:)[ \t]{0,9}(?=[^\s:])", re.IGNORECASE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
LAST_NUMBER = re.compile(r"([+-]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)")
SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")


def extract_answer(completion: str, lenient: bool = False) -> str | None:
    """The answer's text, or None where the completion gives none.

    Looked for after the last `</think>`, inside the last `<answer>` where there is one: the last `\\boxed{}`; else the
    last line `#### x` or `A: x`; else what follows the last "answer is"; else all that stands in `<answer>`. A last box
    that never closes is no answer, whatever stands before it. `lenient` also takes what marks no answer; never train on
    that.
    """
    region = completion[-REGION_BYTES:]
    region = region.rpartition("</think>")[2]
    start = region.rfind("<answer>")
    if start >= 0:
        region = region[start + len("<answer>") :].partition("</answer>")[0]
    if "\\boxed" in region or "\\fbox" in region:
        return _bounded(last_boxed(region))
    if marked := MARKED.findall(region):
        return _bounded(marked[-1])
    if phrases := [*PHRASE.finditer(region)]:
        return _bounded(SENTENCE_END.split(region[phrases[-1].end() :])[0])
    if start >= 0:
        return _bounded(region)
    return _bounded(_last_mathematics(region)) if lenient else None


def _last_mathematics(region: str) -> str | None:
    """What a reader would take for the answer of a text that marks none: its last formula, else its last number."""
    found = [*FORMULA.finditer(region)] or [*LAST_NUMBER.finditer(region)]
    return next((group for group in found[-1].groups() if group), None) if found else None


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
