"""Prompts as files: `chat` is the tokenizer's own template, any other name is a text file beside this one.

A score without its prompt is not comparable, so a result records the name together with the hash of what was rendered.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import TemplateError

from posttrain.data.prompts.control_tokens import control_tokens
from posttrain.data.prompts.time_limit import TimeUp, time_limit
from posttrain.errors import PosttrainError

DIRECTORY = Path(__file__).parent
TEMPLATE_SECONDS = 10  # for one conversation, which takes a tenth of a millisecond


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks of its completion: the form of the answer, and text that ends it (kept in the completion)."""

    form: str
    stop: tuple[str, ...] = ()
    sha256: str | None = None  # of the file; None for the tokenizer's template
    few_shot: bool = False


@functools.cache
def declared_prompts() -> dict[str, Prompt]:
    """All prompts of prompts.yaml, in its order."""
    declared = yaml.safe_load((DIRECTORY / "prompts.yaml").read_text())
    return {name: Prompt(**{**about, "stop": tuple(about.get("stop", ()))}) for name, about in declared.items()}


def prompt_names(few_shot: bool = True) -> tuple[str, ...]:
    """Names of the declared prompts, with or without those for base models that show examples first."""
    return tuple(name for name, prompt in declared_prompts().items() if few_shot or not prompt.few_shot)


def declared_prompt(name: str) -> Prompt:
    """The declaration of a prompt in prompts.yaml; raises PosttrainError for a name that is not there."""
    if name not in declared_prompts():
        raise PosttrainError(f"prompt: {name!r}: unknown; known: {', '.join(declared_prompts())}")
    return declared_prompts()[name]


def render_prompt(name: str, messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text the model continues. Training and evaluation both call this, so they cannot disagree.

    Raises PosttrainError for more than one message where the prompt is a file, which has a place for one, and for a
    control token in the text of a message, which would end its turn.
    """
    if token := control_tokens(tokenizer).written(message["content"] for message in messages):
        raise PosttrainError(
            f"the control token {token} is written in the text of the prompt {messages[-1]['content'][:60]!r}, where "
            f"it would end a turn; leave such rows out, or make it text: filter_traces.py --control-tokens text"
        )
    if name == "chat":
        return apply_template(tokenizer, messages, add_generation_prompt=True)
    if len(messages) != 1:
        roles = ", ".join(message["role"] for message in messages)
        raise PosttrainError(
            f"prompt: {name}: has a place for one message, this row has {len(messages)} ({roles}): "
            f"{messages[-1]['content'][:60]!r}; use the prompt chat, or leave such rows out"
        )
    return prompt_file(name).replace("{question}", messages[0]["content"])


def check_template(tokenizer: Any) -> None:
    """Raise PosttrainError where the prompt chat has no template to be written by."""
    if not tokenizer.chat_template:
        raise PosttrainError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, which the prompt chat needs; name another "
            f"prompt, or a tokenizer with a template"
        )


def apply_template(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """The conversation as the tokenizer's chat template writes it; raises PosttrainError where it cannot.

    A template comes with a model and is a program: one that never ends is ended.
    """
    check_template(tokenizer)
    try:
        with time_limit(TEMPLATE_SECONDS):
            return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TimeUp:
        what = f"did not end within {TEMPLATE_SECONDS} s"
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        what = f"ends in {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise PosttrainError(
        f"{tokenizer.name_or_path}: its chat template {what}, for a conversation that ends with "
        f"{messages[-1]['content'][:60]!r}; mend the template, name another prompt, or leave such rows out"
    )


@functools.cache
def prompt_file(name: str) -> str:
    """A prompt's text with `{question}` in it."""
    return (DIRECTORY / f"{name}.txt").read_text()


def prompt_hash(text: str) -> str:
    """Short hash of a rendered prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
