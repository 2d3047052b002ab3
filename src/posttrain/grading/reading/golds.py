"""Golds as people write them, read once and for all: for prepared data, rewards and evaluation alike."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.grading.reading.extract import extract_answer

MAX_GOLD = 64 * 1024  # characters; a worked solution's answer stands at its end
GSM8K = "####"
LISTED = re.compile(r"""\[ ?(?:'([^']*)'|"([^"]*)") ?\]""")  # a list of one, written as text
OPTION = re.compile(r"A:")  # of a choice; only in completions it says where the answer stands


class GoldError(PosttrainError):
    """A value that states no gold answer."""


def read_gold(value: object) -> str:
    """The answer that a gold states.

    A gold is text, a number, or a list of them. Text is the answer itself, in bold or not, or marks one as a
    completion does: GSM8K's worked solution with its last `####`, a solution with a box, "The answer is 13.". Several
    values in a list are joined by commas. Anything else raises GoldError.
    """
    if isinstance(value, str):
        text = _read_text(value)
    elif isinstance(value, bool) or value is None or isinstance(value, Mapping):
        raise GoldError(f"expected a gold answer as text, a number or a list of them, found {_describe(value)}")
    elif isinstance(value, Sequence) or hasattr(value, "tolist"):
        items = value.tolist() if hasattr(value, "tolist") else value
        text = ", ".join(map(read_gold, items if isinstance(items, list | tuple) else [items]))
    else:
        text = _number(value)
    if not text:
        raise GoldError("expected a gold answer, found none in an empty value")
    return text


def gold_at(record: Mapping[str, Any], column: str) -> object:
    """The value in a column, or below it: `reward_model.ground_truth` is a field of a nested column. None for none."""
    if column in record:
        return record[column]
    found: object = record
    for name in column.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


@functools.lru_cache(maxsize=2**14)
def _read_text(text: str) -> str:
    text = text[-MAX_GOLD:].strip()
    if listed := LISTED.fullmatch(text):
        text = (listed.group(1) or listed.group(2) or "").strip()
    if GSM8K in text and "\\boxed" not in text:
        text = text[text.rindex(GSM8K) :]
    marked = None if OPTION.match(text) else extract_answer(text)
    if marked is None and "\\boxed{" in text:  # a gold is trusted, even where its box never closes
        marked = text.rpartition("\\boxed{")[2].strip()
    return marked or text.removeprefix(GSM8K).strip().strip("*").strip()


def _number(value: object) -> str:
    try:
        number = str(value)
        finite = math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise GoldError(f"expected a gold answer as text or a number, found {_describe(value)}") from None
    if not finite:
        raise GoldError(f"expected a gold answer as text or a finite number, found {number}")
    return number


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        names = ", ".join(str(name)[:40] for name in list(value)[:8])
        return f"an object with the fields {names}; name one of them with a point, as in column.field"
    if isinstance(value, int) and not isinstance(value, bool):
        return "an integer too long to print"
    return "nothing" if value is None else f"a value of the type {type(value).__name__}"
