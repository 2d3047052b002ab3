"""Rows as token ids beside their text, so that training does not tokenise them again.

`<split>.ids.parquet` holds `id`, `input_ids` (prompt, then completion) and `n_prompt` for every row of
`<split>.parquet`, in its order. Its metadata names the key it was made under: a digest of the tokenizer (its whole
serialisation: vocabulary, merges, added tokens, normaliser), of its chat template, of the prompt's text and of the end
token. Where any of them is another one, or the rows are, the file is not used, and training says so and tokenises.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.console import warn
from posttrain.data.prompts import check_template, prompt_file

SUFFIX = ".ids.parquet"
KEY = b"posttrain.key"
VERSION = "2"  # of how posttrain.data.encode makes ids from text
SCHEMA = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("n_prompt", pa.int32())])


@dataclass(frozen=True)
class Ids:
    """Token ids of many rows in one array. values: (all tokens,)    offsets: (rows + 1,)    n_prompt: (rows,)"""

    row_ids: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    n_prompt: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[str, np.ndarray, int]]) -> "Ids":
        """From rows of id, token ids and length of the prompt."""
        offsets = np.concatenate([[0], np.cumsum([len(ids) for _, ids, _ in rows])]).astype(np.int64)
        values = np.concatenate([ids for _, ids, _ in rows]) if rows else np.empty(0, dtype=np.int32)
        n_prompt = np.array([n for _, _, n in rows], dtype=np.int64)
        return cls(np.array([row_id for row_id, _, _ in rows], dtype=object), values, offsets, n_prompt)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Ids":
        """The rows at these positions, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[rows], lengths)
        return Ids(self.row_ids[rows], self.values[places], offsets, self.n_prompt[rows])

    def first_by_content(self, n: int | None) -> "Ids":
        """As `posttrain.data.rows.by_content` chooses."""
        return self if n is None else self.take(np.argsort(self.row_ids.astype(str), kind="stable")[:n])


def ids_key(tokenizer: Any, prompt: str, eos_token: str | None) -> str:
    """What decides the ids of a given text."""
    if prompt == "chat":
        check_template(tokenizer)
    backend = tokenizer.backend_tokenizer
    digest = hashlib.sha256(_serialised(backend, backend.get_vocab_size()))
    template = tokenizer.get_chat_template() if prompt == "chat" else "" if prompt == "none" else prompt_file(prompt)
    digest.update(json.dumps([VERSION, prompt, template, eos_token]).encode())
    return digest.hexdigest()[:16]


def combined(table: pa.Table) -> pa.Table:
    """One chunk per column. The offsets of `list` have 32 bits, too few for all the tokens of a large split."""
    large = table.schema.field("input_ids").with_type(pa.large_list(pa.int32()))
    return table.cast(table.schema.set(table.schema.get_field_index("input_ids"), large)).combine_chunks()


@functools.lru_cache(maxsize=2)
def _serialised(backend: Any, size: int) -> bytes:
    """A digest of the whole tokenizer; 0.1 s, so made again only where tokens were added."""
    return hashlib.sha256(backend.to_str().encode()).digest()


def ids_path(split: Path) -> Path:
    """Where the ids of `<split>.parquet` lie."""
    return split.with_name(split.stem + SUFFIX)


def _vouched_for(path: Path) -> bool:
    """Whether the manifest beside a file, if there is one, lists it, so that its bytes were checked."""
    try:
        return path.name in json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return True


def read_ids(split: Path, key: str) -> Ids | None:
    """The ids of a split made under `key`; None where there are none, and, with a line on stderr, if of another."""
    path = ids_path(split)
    if not path.is_file():
        return None
    if not _vouched_for(path):
        warn(f"{path}: not of this dataset, whose manifest does not list it: tokenising")
        return None
    if (found := pq.read_schema(path).metadata.get(KEY, b"").decode()) != key:
        warn(f"{path}: made for another tokenizer, template or end ({found}, not {key}): tokenising")
        return None
    table = combined(pq.read_table(path))
    if table["id"] != pq.read_table(split, columns=["id"]).combine_chunks()["id"]:
        warn(f"{path}: made for other rows than {split.name} holds: tokenising")
        return None
    ids = table["input_ids"].chunk(0)
    offsets = np.asarray(ids.offsets, dtype=np.int64)
    row_ids = table["id"].to_numpy(zero_copy_only=False)
    return Ids(row_ids, np.asarray(ids.flatten()), offsets - offsets[0], np.asarray(table["n_prompt"], dtype=np.int64))
