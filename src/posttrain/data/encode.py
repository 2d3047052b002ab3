"""Turn rows into token ids and labels, and refuse rows that would teach the wrong thing.

The prompt is tokenised alone, exactly as evaluation will tokenise it, and the completion after it; so what the model is
trained to continue is what it will be asked to continue. Labels are -100 on the prompt: the loss is on the completion
alone, end token included. Nothing is ever truncated.
"""

import functools
import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.data.prompts import apply_template, render_prompt
from posttrain.data.prompts.control_tokens import control_tokens
from posttrain.data.rows import by_content, read_parquet
from posttrain.data.token_files import Ids, ids_key, read_ids
from posttrain.data.tokenise import Tokenise, open_tokenizer, spelled, token_ids
from posttrain.errors import PosttrainError

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
            text = _column(row, "text")
            _check_text(row, text.removesuffix(tokenizer.eos_token or ""), tokenizer)  # a document may end itself
            return "", text
        try:
            prompt = render_prompt(self.prompt, _column(row, "prompt"), tokenizer)
        except PosttrainError as error:
            raise RowError(f"row {row['id']}: {error}") from error
        content = _column(row, "completion")[-1]["content"]
        _check_text(row, content, tokenizer)
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
        try:
            full = apply_template(tokenizer, [*row["prompt"], *row["completion"]])
        except PosttrainError as error:
            raise RowError(f"row {row['id']}: {error}") from error
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


def load_tokenizer(name: str, revision: str | None, eos_token: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, its end token set to the recipe's. Labels mask padding, whatever its token."""
    tokenizer = open_tokenizer(name, revision)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise PosttrainError(f"eos_token: {eos_token!r}: not in the vocabulary of {name}")
        tokenizer.eos_token = eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """A row as ids: prompt, then completion. `fault` is what the lint has against it, or None. ids: (T,) int32"""

    ids: np.ndarray
    n_prompt: int
    fault: str | None = None


def load_split(
    path: Path, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, limit: int | None
) -> tuple[Dataset, int]:
    """Token ids and labels of a parquet split, and how many rows were dropped as too long.

    Ids that `data_prep/filter_traces.py` prepared for this tokenizer and prompt are used as they are. Raises RowError
    for the first row that the lint refuses.
    """
    prepared = read_ids(path, ids_key(tokenizer, encoding.prompt, encoding.eos_token))
    ids = _tokenise(path, tokenizer, encoding, limit) if prepared is None else prepared.first_by_content(limit)
    lengths = ids.lengths
    fits = lengths <= encoding.max_length
    if not fits.all() and encoding.too_long == "error":
        first = int(np.argmin(fits))
        row = next(row for row in read_parquet(path) if row["id"] == ids.row_ids[first])
        raise RowError(
            f"{path}: row {row['id']}: {lengths[first]} tokens, but max_length is {encoding.max_length}: "
            f"{str(row.get('prompt') or row.get('text'))[:80]}…; filter it in data_prep/, raise max_length, or "
            f"write too_long: drop"
        )
    dropped = int((~fits).sum())
    if dropped == len(lengths):
        raise RowError(f"{path}: no rows left to train on: {dropped} of {dropped} dropped as longer than max_length")
    return with_labels(ids if fits.all() else ids.take(np.flatnonzero(fits))), dropped


def with_labels(ids: Ids) -> Dataset:
    """The trainer's columns: input_ids, and labels that are `IGNORED` on the prompt."""
    values = ids.values.astype(np.int64)
    labels = values.copy()
    for start, n_prompt in zip(ids.offsets.tolist(), ids.n_prompt.tolist(), strict=False):
        labels[start : start + n_prompt] = IGNORED
    offsets = pa.array(ids.offsets, pa.int32() if len(values) < 2**31 else pa.int64())
    column = pa.ListArray if len(values) < 2**31 else pa.LargeListArray
    table = pa.table({"input_ids": column.from_arrays(offsets, values), "labels": column.from_arrays(offsets, labels)})
    # A name of our own: to find one, datasets would pickle and hash all of it.
    return Dataset(table, fingerprint=hashlib.sha256("".join(ids.row_ids).encode()).hexdigest()[:16])


def _tokenise(path: Path, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, limit: int | None) -> Ids:
    rows = by_content(read_parquet(path), limit)
    encoded = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        for row, one in zip(batch, encode_each(batch, tokenizer, encoding), strict=True):
            if one.fault:
                raise RowError(one.fault)
            encoded.append((row["id"], one.ids, one.n_prompt))
    return Ids.of(encoded)


def encode_each(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    tokenise: Tokenise | None = None,
) -> list[Encoded]:
    """Ids of a batch of rows; a row that must not be trained on says why. Each text is encoded once."""
    tokenise = tokenise or functools.partial(token_ids, tokenizer)
    texts, faults = [], []
    for row in rows:
        try:
            texts.append(encoding.texts(row, tokenizer))
            faults.append(None)
        except RowError as error:
            texts.append(("", ""))
            faults.append(str(error))
    ids = tokenise([prompt for prompt, _ in texts] + [completion for _, completion in texts])
    prompts, completions = ids[: len(rows)], ids[len(rows) :]
    eos_id = None if encoding.eos_token is None else tokenizer.convert_tokens_to_ids(encoding.eos_token)
    encoded = []
    columns = zip(rows, faults, prompts, completions, texts, spelled(tokenizer, completions), strict=True)
    for row, fault, prompt, completion, (_, text), back in columns:
        if fault is None and (found := lint(completion, text, back, eos_id)):
            fault = f"row {row['id']}: {found}: {text[:80]!r}"
        encoded.append(Encoded(np.concatenate([prompt, completion]), len(prompt), fault))
    return encoded


def encode_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and labels of a batch of rows; raises RowError for the first that must not be trained on."""
    encoded = encode_each(rows, tokenizer, encoding)
    for one in encoded:
        if one.fault:
            raise RowError(one.fault)
    input_ids = [one.ids.tolist() for one in encoded]
    return input_ids, [
        [IGNORED] * one.n_prompt + ids[one.n_prompt :] for one, ids in zip(encoded, input_ids, strict=True)
    ]


def lint(ids: np.ndarray, text: str, back: bytes, eos_id: int | None) -> str | None:
    """What is wrong with a tokenised completion, or None. ids: (T,)

    `back` is what `ids` stand for; the tokenizer may normalise (NFC), but must not lose anything.
    """
    if not len(ids) or (eos_id is not None and len(ids) == 1):
        return "the completion is empty"
    if eos_id is not None and ids[-1] != eos_id:
        return "the loss does not cover the end token, so the model would never learn to stop"
    if eos_id is not None and (ids[:-1] == eos_id).any():
        return "the end token also stands inside the completion"
    if back != text.encode() and back != unicodedata.normalize("NFC", text).encode():
        return f"the token ids decode to something else ({back.decode(errors='replace')[:40]!r}…)"
    return None


def _check_text(row: dict[str, Any], text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if token := control_tokens(tokenizer).written([text]):
        raise RowError(
            f"row {row['id']}: the control token {token} is written in what shall be learned, {text[:60]!r}; leave "
            f"such rows out, or make it text: filter_traces.py --control-tokens text"
        )


def _column(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError(
            f"row {row['id']}: has no column {name!r}, only {', '.join(row)}; the recipe's prompt must fit the dataset "
            f"(prompt: none is for plain text)"
        )
    return row[name]
