"""Prompts as files: `chat` is the tokenizer's own template, any other name is a text file beside this one.

A score without its prompt is not comparable, so a result records the name together with the hash of what was rendered.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent


def render_prompt(name: str, messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text the model continues. Training and evaluation both call this, so they cannot disagree."""
    if name == "chat":
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt_file(name).replace("{question}", messages[-1]["content"])


@functools.cache
def prompt_file(name: str) -> str:
    """A prompt's text with `{question}` in it."""
    return (DIRECTORY / f"{name}.txt").read_text()


def prompt_hash(text: str) -> str:
    """Short hash of a rendered prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
