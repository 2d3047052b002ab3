"""Prompts as files: `chat` is the tokenizer's own template, any other name is a text file beside this one.

A score without its prompt is not comparable, so a result records the name together with the hash of what was rendered.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import PosttrainError

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks of its completion: the form of the answer, and text that ends it (kept in the completion)."""

    form: str
    stop: tuple[str, ...] = ()
    sha256: str | None = None  # of the file; None for the tokenizer's template


def declared_prompt(name: str) -> Prompt:
    """The declaration of a prompt in prompts.yaml; raises PosttrainError for a name that is not there."""
    known = yaml.safe_load((DIRECTORY / "prompts.yaml").read_text())
    if name not in known:
        raise PosttrainError(f"prompt: {name!r}: unknown; known: {', '.join(known)}")
    declared = known[name]
    return Prompt(**{**declared, "stop": tuple(declared.get("stop", ()))})


def render_prompt(name: str, messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text the model continues. Training and evaluation both call this, so they cannot disagree.

    Raises PosttrainError for more than one message where the prompt is a file, which has a place for one.
    """
    if name == "chat":
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if len(messages) != 1:
        roles = ", ".join(message["role"] for message in messages)
        raise PosttrainError(
            f"prompt: {name}: has a place for one message, this row has {len(messages)} ({roles}): "
            f"{messages[-1]['content'][:60]!r}; use the prompt chat, or leave such rows out"
        )
    return prompt_file(name).replace("{question}", messages[0]["content"])


@functools.cache
def prompt_file(name: str) -> str:
    """A prompt's text with `{question}` in it."""
    return (DIRECTORY / f"{name}.txt").read_text()


def prompt_hash(text: str) -> str:
    """Short hash of a rendered prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
