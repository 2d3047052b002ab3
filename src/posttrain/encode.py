"""Rows to token ids and labels, and the lint that refuses rows which would teach the wrong thing.

The prompt is tokenised alone, exactly as evaluation will tokenise it, and the completion after it; so what the model is
trained to continue is what it will be asked to continue. Labels are -100 on the prompt: the loss is on the completion
alone, end token included. Nothing is ever truncated.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.errors import PosttrainError
from posttrain.prompts import render_prompt
from posttrain.rows import by_content, read_parquet

IGNORED = -100  # the label that cross entropy skips
BATCH = 512  # rows tokenised at once


class RowError(PosttrainError):
    """A row that cannot be trained on, with its id and text."""


@dataclass(frozen=True)
class Encoding:
    """How rows become ids: the recipe's prompt, the end token's text (None: no end is taught), the longest row."""

    prompt: str
    eos_token: str | None
    max_length: int
    too_long: str

    def texts(self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Prompt and completion as text; plain text is a completion without prompt."""
        if self.prompt == "none":
            return "", _column(row, "text")
        prompt = render_prompt(self.prompt, _column(row, "prompt"), tokenizer)
        content = _column(row, "completion")[-1]["content"]
        completion = content + (self.eos_token or "")
        if self.prompt == "chat":
            completion = self._chat_completion(row, tokenizer, prompt)
            if content.strip() not in completion:
                raise RowError(
                    f"row {row['id']}: the chat template changes the completion: {content[:60]!r} becomes "
                    f"{completion[:60]!r}; use a template that keeps it, or another prompt"
                )
        return prompt, completion

    def _chat_completion(self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        full = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
        if not full.startswith(prompt):
            raise RowError(
                f"row {row['id']}: the chat template renders the prompt differently once it has an answer: "
                f"{prompt[-60:]!r} is not where {full[:80]!r}… starts; use a template that only appends"
            )
        completion, eos = full[len(prompt) :], self.eos_token
        if eos is None:
            return row["completion"][-1]["content"]
        if eos not in completion:
            raise RowError(
                f"row {row['id']}: the chat template does not end an answer with {eos!r} but with "
                f"{completion[-20:]!r}; set eos_token in the recipe to the token that ends a turn"
            )
        return completion[: completion.rindex(eos) + len(eos)]


def load_split(
    path: Path, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, limit: int | None
) -> tuple[Dataset, int]:
    """Token ids and labels of a parquet split, and how many rows were dropped as too long.

    Raises RowError for the first row that the lint refuses.
    """
    rows = by_content(read_parquet(path), limit)
    encoded: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    dropped = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        for row, ids, labels in zip(batch, *encode_rows(batch, tokenizer, encoding), strict=True):
            if len(ids) <= encoding.max_length:
                encoded["input_ids"].append(np.array(ids))  # a Python list of integers takes five times the memory
                encoded["labels"].append(np.array(labels))
            elif encoding.too_long == "drop":
                dropped += 1
            else:
                raise RowError(
                    f"{path}: row {row['id']}: {len(ids)} tokens, but max_length is {encoding.max_length}: "
                    f"{str(row.get('prompt') or row.get('text'))[:80]}…; filter it in data_prep/, raise max_length, or "
                    f"write too_long: drop"
                )
    if not encoded["input_ids"]:
        raise RowError(f"{path}: no rows left to train on: {dropped} of {len(rows)} dropped as longer than max_length")
    return Dataset.from_dict(encoded), dropped


def encode_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and labels of a batch of rows, each of them linted."""
    texts = [encoding.texts(row, tokenizer) for row in rows]
    prompts = tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
    completions = tokenizer([completion for _, completion in texts], add_special_tokens=False)["input_ids"]
    eos_id = None if encoding.eos_token is None else tokenizer.convert_tokens_to_ids(encoding.eos_token)
    decoded = tokenizer.batch_decode(completions, clean_up_tokenization_spaces=False)
    for row, (_, text), ids, back in zip(rows, texts, completions, decoded, strict=True):
        if fault := lint(ids, text, back, eos_id):
            raise RowError(f"row {row['id']}: {fault}: {text[:80]!r}")
    input_ids = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    labels = [[IGNORED] * len(prompt) + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return input_ids, labels


def lint(ids: list[int], text: str, decoded: str, eos_id: int | None) -> str | None:
    """What is wrong with a tokenised completion, or None.

    `decoded` is what `ids` decode to; the tokenizer may normalise (NFC), but must not lose anything.
    """
    if not ids or (eos_id is not None and len(ids) == 1):
        return "the completion is empty"
    if eos_id is not None and ids[-1] != eos_id:
        return "the loss does not cover the end token, so the model would never learn to stop"
    if eos_id is not None and eos_id in ids[:-1]:
        return "the end token also stands inside the completion"
    if unicodedata.normalize("NFC", decoded) != unicodedata.normalize("NFC", text):
        return f"the token ids decode to something else ({decoded[:40]!r}…)"
    return None


def _column(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError(
            f"row {row['id']}: has no column {name!r}, only {', '.join(row)}; the recipe's prompt must fit the dataset "
            f"(prompt: none is for plain text)"
        )
    return row[name]
