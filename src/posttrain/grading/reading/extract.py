"""The answer a completion gives, found in time linear in its length, without backtracking."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.grading.reading.boxes import box_start, boxes, last_boxed
from posttrain.grading.reading.prose import first_sentence, is_verdict, read_span, starts_list
from posttrain.grading.reading.unmarked import corrected, last_mathematics, stated_last

REGION_BYTES = 64 * 1024  # the answer stands at the end; earlier text is not searched for it
MAX_ANSWER = 2000  # characters
END_TOKEN = re.compile(r"<\|[A-Za-z_ ]{1,40}\|>|</s>|<(?:eos|pad|end_of_turn)>")
HASHES = re.compile(r"####[ \t]{0,9}(?!#)([^\n]*)")  # GSM8K's own
SOLUTION = re.compile(r"^A:[ \t]*+([^\n]+)$", re.MULTILINE)  # its model solutions'; or the first of some options
COPULA = r"(?:is|are|was|be|being|equals?|becomes|to be|of)"
PHRASE = re.compile(
    # "answer" and up to "is" or a colon; between them words of the same clause, but not "might" or "not"
    rf"(?<![A-Za-z])answers?(?![A-Za-z])[*_`]{{0,3}}(?:[ \t]{{0,9}}(?:[:=：≈]|[*_]{{0,3}}:)"
    rf"|(?:,?[ \t]{{1,9}}(?!(?:might|may|could|can|if|whether|not|key|choices?|options?)\b)[A-Za-z'’]{{1,15}}){{0,8}}?"
    rf",?[ \t]{{1,9}}{COPULA}\b)[*_`]{{0,3}}[ \t]{{0,9}}:?[*_`]{{0,3}}[ \t]{{0,9}}"
    r"|(?:答案|故选|应选|所以选|结果)[ \t]{0,9}(?:应该)?(?:是|为|选|等于)?[ \t]{0,9}[:：]?[ \t]{0,9}",
    re.IGNORECASE,
)
HEADING = re.compile(
    r"^[ \t]{0,9}[#*_]{0,6}[ \t]{0,9}(?:the )?(?:final )?answers?[*_]{0,3}[ \t]{0,9}:?[*_]{0,3}[ \t]*$", re.I | re.M
)
DISPLAY = re.compile(r"\\\[[^\\]*+(?:\\(?![\[\]])[^\\]*+)*\\\]|\$\$[^$]*+\$\$", re.DOTALL)
MAX_MARKS = 50  # that are tried, from the last
TAGS = ("answer", "ANSWER", "Answer")


@dataclass(frozen=True)
class Found:
    """The answer's text or None, where it was looked for, and the piece of text that was read there."""

    answer: str | None
    source: str
    span: str = ""


def extract_answer(completion: str, lenient: bool = False) -> str | None:
    """The answer's text, or None where the completion gives none."""
    return find_answer(completion, lenient).answer


def find_answer(completion: str, lenient: bool = False) -> Found:
    """The answer and where it stands.

    Looked for behind the last `</think>`, in the last `<answer>` where there is one: the last `\\boxed{}` that is
    not empty, and those before it that only a separator parts from it; else the last `#### x`; else what follows the
    last "answer is" or "Answer:", on the next line too; else the last line `A: x`; else all that stands in `<answer>`.
    A last box that never closes is no answer, whatever stands before it. All but boxes is prose for `read_span`.
    `lenient` also takes what marks no answer; never train on that.
    """
    region, tagged = _region(completion)
    if lenient and (stated := stated_last(region, PHRASE)):
        return Found(_bounded(stated), "a formula behind the last box", stated)
    if box_start(region) >= 0 and ((content := boxes(region)) is not None or last_box_is_open(region)):
        return Found(_bounded(content), "the last box", content or "")
    for source, spans in (("####", _hashes(region)), ("answer is", _phrases(region)), ("A:", _solutions(region))):
        if found := _first_read(source, spans, lenient):
            return found
    if tagged:
        return Found(_bounded(read_span(_last_line(region))), "<answer>", region)
    return Found(_bounded(last_mathematics(region)), "no mark", "") if lenient else Found(None, "nothing")


def has_box(completion: str) -> bool:
    """Whether the last box of the completion is complete: the format that the boxed prompts ask for."""
    return last_boxed(completion[-REGION_BYTES:]) is not None


def has_closed_answer(completion: str) -> bool:
    """Whether the answer has an end of its own: a box with its closing brace, or `</answer>`."""
    region = completion[-REGION_BYTES:].rpartition("</think>")[2]
    if any(f"</{tag}>" in region for tag in TAGS):
        return True
    start = box_start(region)
    return start >= 0 and "{" in region[start : start + 20] and bool(last_boxed(region))


def last_box_is_open(region: str) -> bool:
    """Whether a box is opened that never closes; one that is empty is no box at all."""
    start = box_start(region)
    return start >= 0 and "}" not in region[start:]


def _region(completion: str) -> tuple[str, bool]:
    """The text that may hold the answer, without end tokens; whether it stood in `<answer>`."""
    region = completion[-REGION_BYTES:].rpartition("</think>")[2]
    if "<" not in region:
        return region, False
    if "<|" in region or "</s>" in region or "<e" in region:
        region = END_TOKEN.sub("\n", region)
    start, tag = max((region.rfind(f"<{tag}>"), tag) for tag in TAGS)
    if start < 0:
        return region, False
    return region[start + len(tag) + 2 :].partition(f"</{tag}>")[0], True


def _first_read(source: str, spans: Iterator[str], lenient: bool) -> Found | None:
    """The last span that holds an answer; judgements such as "the answer is correct" are passed over."""
    for _, span in zip(range(MAX_MARKS), spans, strict=False):
        answer = read_span(span)
        if is_verdict(answer) or not span.strip():
            continue
        if lenient:
            answer = answer or last_mathematics(span)
        return Found(_bounded(answer), source, span)
    return None


def _hashes(region: str) -> Iterator[str]:
    """What stands behind `####`, from the last; a heading of the answer has it on the next line."""
    if "####" not in region:
        return
    for match in reversed([*HASHES.finditer(region)]):
        line = match.group(1).strip()
        if HEADING.match(line) or not line:
            yield _next_line(region, match.end())
        elif not line.lower().startswith(("step", "part", "case", "solution", "explanation", "problem")):
            yield line


def _phrases(region: str) -> Iterator[str]:
    """What follows "answer is", from the last, or its correction; on the next line where nothing follows."""
    marks = [(match.end(), match) for match in PHRASE.finditer(region)]
    marks += [(match.end(), match) for match in HEADING.finditer(region)]
    for end, _ in sorted(marks, key=lambda mark: mark[0], reverse=True):
        rest = region[end:]
        sentence = first_sentence(rest[: MAX_ANSWER * 2])
        if rest[len(sentence) : len(sentence) + 1] == "?":
            continue
        if not sentence.strip(" *_`\t\r"):
            yield _next_line(region, end + len(sentence))
        else:
            display = DISPLAY.match(rest[:MAX_ANSWER])
            yield display.group() if display else corrected(sentence, rest[len(sentence) : MAX_ANSWER])


def _solutions(region: str) -> Iterator[str]:
    return reversed(SOLUTION.findall(region)) if "A:" in region else iter(())


def _next_line(region: str, end: int) -> str:
    """The next line that says something, or the display that stands there; no line of a numbered list."""
    rest = region[end : end + 2 * MAX_ANSWER].lstrip("\r\n\t *_`.。")
    if display := DISPLAY.match(rest):
        return display.group()
    line = rest.partition("\n")[0]
    return "" if starts_list(line) else first_sentence(line)


def _last_line(region: str) -> str:
    """The last sentence of what stands in `<answer>`."""
    lines = region.strip().splitlines()
    if DISPLAY.fullmatch(region.strip()) or len(lines) <= 1:
        return region.strip()
    return lines[-1]


def _bounded(answer: str | None) -> str | None:
    """The answer without outer blanks, or None where it is empty or too long to be one."""
    answer = (answer or "").strip()
    return answer if 0 < len(answer) <= MAX_ANSWER else None
