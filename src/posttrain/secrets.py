"""Secrets are never printed and never stored: keys that name one, credentials in URLs, and texts that look like one."""

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"
NAMES_SECRET = re.compile(
    r"\w*(token|secret|passw(or)?d|pwd|passphrase|credentials?|key|auth|authorization|bearer|signature)"
)
# Tokens of a vocabulary and keys of a mapping are no secrets.
NAMES_NONE = re.compile(r"(eos|bos|pad|unk|sep|cls|mask|image|audio|video|end|stop)_token|key|sort_key|ids_key")
USER = re.compile(r"([a-zA-Z][\w+.-]*://)[^/\s@?#'\"]+@")
PARAMETER = re.compile(r"([?&;][\w.-]*(?:token|key|secret|passw|pwd|sig|auth|cred)[\w.-]*=)[^&\s#'\"]+", re.IGNORECASE)
FLAG = re.compile(r"(?<!\S)(--?)([\w.-]+)(=|\s+)('[^']*'|\"[^\"]*\"|[^\s-]\S*)")
LINE = re.compile(r"^([\s-]*['\"]?)([\w.-]+)(['\"]?\s*:\s*)(\S.*)$", re.MULTILINE)
# Tokens of Hugging Face, OpenAI and others, GitHub, GitLab, AWS, Slack, Google, wandb, and JSON web tokens.
KNOWN = re.compile(
    r"(?<![\w-])(hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|"
    r"xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|wandb_v1_\w{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)


def names_secret(key: str) -> bool:
    """Whether values under this key are secrets: `hub_token`, `WANDB_API_KEY`; not `eos_token`."""
    last = key.lstrip("-").replace("-", "_").lower().rpartition(".")[2]
    return bool(NAMES_SECRET.fullmatch(last)) and not NAMES_NONE.fullmatch(last)


def masked_text(text: str) -> str:
    """Text of an error, a URL or a command line without what is secret in it."""
    text = PARAMETER.sub(rf"\g<1>{MASK}", USER.sub(rf"\g<1>{MASK}@", text))
    text = FLAG.sub(lambda found: _without_value(found, found[1] + found[2] + found[3]), text)
    return KNOWN.sub(MASK, text)


def masked_file(text: str) -> str:
    """Text of a file of `key: value` lines without what is secret in it."""
    return masked_text(LINE.sub(lambda found: _without_value(found, found[1] + found[2] + found[3]), text))


def _without_value(found: re.Match[str], start: str) -> str:
    return start + MASK if names_secret(found[2]) else found[0]


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without what is secret in it, word by word."""
    masked, after_secret = [], False
    for argument in arguments:
        masked.append(MASK if after_secret and not argument.startswith("--") else masked_text(argument))
        after_secret = argument.startswith("-") and "=" not in argument and names_secret(argument)
    return masked


def masked(value: Any, key: str = "") -> Any:
    """A JSON value without what is secret in it, at any depth; equal values stay equal."""
    if isinstance(value, dict):
        return {name: masked(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [masked(one, key) for one in value]
    if names_secret(key) and value and not isinstance(value, bool):
        return MASK
    if isinstance(value, str):
        return masked_file(value) if "\n" in value else masked_text(value)
    return value
