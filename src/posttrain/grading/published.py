"""Graders that published numbers were made with, imitated from their described behaviour, errors included.

Only to compare with those numbers. Each takes a gold and a whole completion and says True, False or `unparsed`. Runs
only inside a process of `pool`. Unlike the originals none evaluates model text as Python: what LaTeX parsing does not
read is not equal.
"""

import math
import re
from typing import Any

from posttrain.grading.reading.boxes import last_boxed

Outcome = bool | str
UNPARSED = "unparsed"
NUMBER = re.compile(r"-?\d*\.?\d+")
QWEN_TOLERANCE = 1e-4
QWEN_UNITS = ("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week", "month", "year",
              "foot", "feet", "inch", "dollars", "mph", "units", "and", "people")  # fmt: skip


def mathverify(gold: str, completion: str) -> Outcome:
    """Math-Verify's own call with its default settings, the gold as LaTeX."""
    from math_verify import parse, verify

    answers = parse(completion, parsing_timeout=None)
    return (
        bool(verify(parse(f"${gold}$", parsing_timeout=None), answers, timeout_seconds=None)) if answers else UNPARSED
    )


# QwenLM/Qwen2.5-Math, evaluation/grader.py and parser.py


def qwen(gold: str, completion: str) -> Outcome:
    """Qwen2.5-Math's grader: numbers within 1e-4, also a hundredth and a hundredfold; brackets are alike."""
    answer = _qwen_answer(completion)
    return _qwen_equal(answer, _qwen_strip(gold)) if answer else UNPARSED


def _qwen_answer(completion: str) -> str:
    """What follows the last box, even one that never closes; else "answer is"; else the last number."""
    if "final answer is $" in completion and "$. I hope" in completion:
        found = completion.partition("final answer is $")[2].partition("$. I hope")[0]
    elif "boxed" in completion:
        tail = completion.rpartition("boxed")[2]
        if tail.startswith("{"):
            closed = last_boxed("\\boxed" + tail)
            found = tail[1:] if closed is None else closed
        else:
            found = tail.partition("$")[0].strip()
    elif "he answer is" in completion:
        found = completion.rpartition("he answer is")[2]
    else:
        numbers = NUMBER.findall(completion.replace(",", ""))
        found = numbers[-1] if numbers else ""
    found = re.sub(r"\n\s*", "", found).lstrip(":").removesuffix(".").removesuffix("/")
    return _qwen_strip(found)


def _qwen_strip(text: str) -> str:
    """Their normal form: units, percent signs, text and spaces dropped, fractions and roots in braces."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\[td]frac", r"\\frac", text).replace("\\left", "").replace("\\right", "")
    text = text.replace("\\{", "{").replace("\\}", "}")
    without_unit = re.sub(r"\\text\{[^{}]*\}$", "", text).strip()
    text = without_unit or text
    for unit in QWEN_UNITS:
        text = re.sub(rf"(^|\W){unit}s?($|\W)", r"\1\2", text)
    text = re.sub(r"(?<![A-Za-z\\])[acdghlmost](?![A-Za-z])(?<=\d[a-z])", "", text)  # a lone letter after a number
    text = re.sub(r"\^\{?\\circ\}?|\\?\$|\\?%|\\text\{([^{}]*)\}|\\mathrm\{([^{}]*)\}", r"\1\2", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text.replace("\\infinity", "\\infty"))
    head, equals, tail = text.partition("=")
    if equals and len(head.strip()) <= 2 and "=" not in tail:
        text = tail
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)
    return re.sub(r"(\d+)\.0+(?!\d)", r"\1", text)


def _qwen_number(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text.removesuffix("%").removesuffix("\\")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _qwen_equal(answer: str, gold: str) -> bool:
    if answer.lower() == gold.lower():
        return True
    if gold in ("A", "B", "C", "D", "E"):
        letters = re.findall(r"\b[A-E]\b", answer.upper())
        if letters and letters[-1] == gold:
            return True
    value, expected = _qwen_number(answer), _qwen_number(gold)
    if value is not None and expected is not None:
        return any(math.isclose(expected * scale, value, rel_tol=QWEN_TOLERANCE) for scale in (0.01, 1, 100))
    if not answer:
        return False
    bare = [re.sub(r"[{}()\[\]]", "", text).lower() for text in (answer, gold)]
    if bare[0] == bare[1]:
        return True
    if all(re.fullmatch(r"[(\[].+[)\]]", text) for text in (answer, gold)):
        left, right = answer[1:-1].split(","), gold[1:-1].split(",")
        if len(left) == len(right) and all(map(_qwen_equal, left, right)):
            return True
    return _same_algebra(_one_side(answer, gold), _one_side(gold, answer), QWEN_TOLERANCE)


def _one_side(text: str, other: str) -> str:
    """Two equations are compared as left minus right; `x=5` beside a value is the value."""
    if text.count("=") != 1:
        return text
    left, right = (side.strip() for side in text.split("="))
    if other.count("=") == 1:
        return f"{left}-({right})"
    return right if len(left) <= 2 else text


# sail-sg/understand-r1-zero and cs336, drgrpo_grader.py, fast=False


def drgrpo(gold: str, completion: str) -> Outcome:
    """The grader of understand-r1-zero for prompts that ask for a box."""
    boxed = last_boxed(completion)
    return UNPARSED if boxed is None else _drgrpo_equal(boxed, gold)


def drgrpo_tags(gold: str, completion: str) -> Outcome:
    """The same for r1_zero: exactly one space between the tags, and text after `</answer>` stays in the answer."""
    if "</think> <answer>" not in completion or "</answer>" not in completion:
        return UNPARSED
    answer = completion.rpartition("<answer>")[2].replace("</answer>", "")
    if "\\boxed" in answer:
        boxed = last_boxed(answer)
        return False if boxed is None else _drgrpo_equal(boxed, gold)
    return _drgrpo_equal(answer, gold)


def _drgrpo_equal(answer: str, gold: str) -> bool:
    """Equal text in mathd's form, or equal algebra item by item, or Math-Verify's yes."""
    gold = (last_boxed(gold) or gold) if "\\boxed" in gold else gold
    if _mathd(answer) == _mathd(gold):
        return True
    left, right = _items(_loose(answer)), _items(_loose(gold))
    if len(left) == len(right) and all(map(_item_equal, left, right)):
        return True
    return mathverify(gold, f"\\boxed{{{answer}}}") is True


def _mathd(text: str) -> str:
    """mathd's normal form: no spaces, units, signs of money or percent; fractions in braces."""
    text = text.strip().replace("\n", "").replace("\\!", "")
    text = re.sub(r"\\[td]frac", r"\\frac", text).replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\^\{\\circ\}|\^\\circ|\\\$|\\?%", "", text).partition("\\text{ ")[0]
    text = re.sub(r"^\\text\{(.+?)\}$", r"\1", text)
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    head, equals, tail = text.partition("=")
    text = tail if equals and len(head) <= 2 else text
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)


def _loose(text: str) -> str:
    """Their second form: `or` and `and` are commas, unit words go, thousands lose their commas."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"[$%]|\\left|\\right|\\!|\^\{?\\circ\}?", "", text).replace(" or ", " , ").replace(" and ", " , ")
    text = re.sub(r"(?<=\d)\s*(?:degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|"
                  r"yard)(?:es|s)?\b(?:\s*\^\d+)?", "", text)  # fmt: skip
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text.strip().lower())


def _items(text: str) -> list[str]:
    inner = len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not re.search(r"[()\[\]]", text[1:-1])
    return [text[0] + text[-1], *(part.strip() for part in text[1:-1].split(","))] if inner else [text]


def _item_equal(answer: str, gold: str) -> bool:
    if answer == gold:
        return bool(gold)
    fraction = re.compile(r"-?\d+/\d+")
    if fraction.fullmatch(answer) and fraction.fullmatch(gold):
        return False  # an unreduced fraction is wrong there
    if bool(re.fullmatch(r"-?\d+", gold)) and not re.fullmatch(r"-?\d+", answer):
        return False
    return _same_algebra(answer, gold, None)


def _same_algebra(answer: str, gold: str, tolerance: float | None) -> bool:
    """Whether two pieces of LaTeX are equal expressions, or equal numbers within the relative tolerance."""
    left, right = _expression(answer), _expression(gold)
    if left is None or right is None:
        return False
    import sympy

    if left == right:
        return True
    if tolerance is not None and all(isinstance(side, sympy.core.relational.Relational) for side in (left, right)):
        left, right = (abs(side.lhs - side.rhs) for side in (left, right))  # theirs forgets which relation it is
    if not all(isinstance(side, sympy.Expr) for side in (left, right)):
        return False
    if sympy.simplify(left - right) == 0:
        return True
    numbers = tolerance is not None and left.is_number and right.is_number and left.is_real and right.is_real
    return bool(numbers and math.isclose(float(left), float(right), rel_tol=tolerance or 0.0))


def _expression(text: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, fallback_mode="no_fallback")
    return found[0] if found else None
