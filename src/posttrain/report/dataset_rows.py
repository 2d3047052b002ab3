"""Rows of a prepared dataset as training sees them: their token ids, and which of them the loss is on."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import IGNORED, Encoding, load_split
from posttrain.data.prompts import apply_template
from posttrain.data.rows import read_parquet
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import PosttrainError

NO_LIMIT = 2**31  # tokens; a report shows rows that are too long


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are all masked or all learned, as text; `end` is the token that ends the answer."""

    text: str
    learned: bool
    end: bool = False


@dataclass(frozen=True)
class Split:
    """Rows of one split with their token ids and labels, in the order of the file. lengths: (rows,) tokens"""

    name: str
    path: Path
    rows: list[dict[str, Any]]
    ids: Any
    lengths: np.ndarray


def load_rows(
    directory: Path, manifest: dict[str, Any], tokenizer: PreTrainedTokenizerBase, prompt: str
) -> list[Split]:
    """Every split, encoded as src/sft.py would; raises RowError for one that training would refuse."""
    end = (manifest.get("filters") or {}).get("eos_token") or turn_end(tokenizer, prompt)
    encoding = Encoding(prompt, end, NO_LIMIT, "error")
    splits = []
    for name in (split for split, n in manifest["counts"]["kept"].items() if n):
        path = directory / f"{name}.parquet"
        ids, _ = load_split(path, tokenizer, encoding, None)
        ids = ids.with_format("numpy")
        splits.append(Split(name, path, read_parquet(path), ids, np.array([len(row["labels"]) for row in ids])))
    return splits


def load_tokenizer(name: str | None, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer named, which a dataset made without one needs; raises where there is none."""
    if name is None:
        raise PosttrainError(
            f"{directory}: its manifest names no tokenizer, and lengths depend on it; add --tokenizer DIRECTORY_OR_NAME"
        )
    return open_tokenizer(name)


def default_prompt(manifest: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt the rows were filtered for, else the tokenizer's template; `none` for plain text."""
    if "text" in manifest["columns"]:
        return "none"
    return (manifest.get("filters") or {}).get("prompt") or ("chat" if tokenizer.chat_template else "question_only")


def turn_end(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str | None:
    """The token that ends an answer: of the chat template the first special one after it, else the tokenizer's own.

    None for plain text, which has no end.
    """
    if prompt != "chat":
        return None if prompt == "none" else tokenizer.eos_token
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    tail = apply_template(tokenizer, turns).rpartition("answer")[2]
    ends = [token for token in tokenizer.all_special_tokens if token in tail]
    return min(ends, key=tail.index) if ends else tokenizer.eos_token


def pieces(split: Split, index: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """A row as text, cut where the loss mask changes."""
    row = split.ids[index]
    ids, learned = row["input_ids"], row["labels"] != IGNORED
    cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        special = bool(learned[start]) and int(ids[stop - 1]) in tokenizer.all_special_ids
        body = stop - 1 if special else stop
        found.append(Piece(tokenizer.decode(ids[start:body]), bool(learned[start])))
        if special:
            found.append(Piece(tokenizer.decode(ids[body:stop]), learned=True, end=True))
    return [piece for piece in found if piece.text]
