"""Control tokens that are written in the text of a message, where they would end a turn or speak for somebody else.

A tokenizer turns `<|im_end|>` into one id wherever it stands. What the chat template writes is meant so; what a
question or an answer holds is text. Such a row is refused, or dropped and counted, unless it was made text (`as_text`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

MADE_FOR_TEXT = ("<think>", "</think>")  # which answers do hold; some tokenizers call them special
WORD_JOINER = "\u2060"  # has no width and breaks no line, and no control token holds one


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a vocabulary of `size`; `pattern` is None where it has none."""

    size: int
    pattern: re.Pattern[str] | None

    def written(self, texts: Iterable[str]) -> str | None:
        """The first control token that stands in any of the texts, or None."""
        if self.pattern is not None:
            for text in texts:
                if found := self.pattern.search(text):
                    return found.group()
        return None

    def as_text(self, text: str) -> str:
        """The text with a word joiner inside each control token, so that every tokenizer reads it as text."""
        if self.pattern is None:
            return text
        return self.pattern.sub(lambda found: f"{found.group()[0]}{WORD_JOINER}{found.group()[1:]}", text)


KNOWN: WeakKeyDictionary[Any, ControlTokens] = WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens:
    """The control tokens of a tokenizer, looked up again where tokens were added to it; of no tokenizer none."""
    if tokenizer is None:
        return ControlTokens(0, None)
    known = KNOWN.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        known = KNOWN[tokenizer] = _look_up(tokenizer)
    return known


def _look_up(tokenizer: Any) -> ControlTokens:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = added | set(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(names - {"", *MADE_FOR_TEXT}, key=lambda name: (-len(name), name))  # as a tokenizer matches
    pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
    return ControlTokens(len(tokenizer), pattern)
