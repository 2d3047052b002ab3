"""Open a tokenizer that knows a vocabulary; texts to token ids in batches and back to bytes.

The optional `fastokens` package is used where it gives the same ids.
"""

import functools
import importlib.util
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from posttrain import digests
from posttrain.console import warn
from posttrain.errors import PosttrainError

Tokenise = Callable[[list[str]], list[np.ndarray]]
FASTOKENS = "POSTTRAIN_FASTOKENS"  # 0: not used though it is installed
FIRST_CHECKED = 64  # texts of a process's first batch that are encoded by both
CHECKED = 256  # one text in so many of the later ones; and the longest of every batch

TOKENIZER_FILES = ("*token*.json", "*.jinja", "*.model", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json")
DIGITS = "0123456789"


def open_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or of the hub; raises PosttrainError unless it spells digits and gives them back.

    Where the vocabulary is missing, transformers 5 makes a tokenizer of the special tokens alone, which turns every
    text into nothing; one that lost part of its vocabulary skips what it does not know. One that has words and says
    `<unk>` to others is whole: the tiny world of facts knows no digits.
    """
    digests.check_matching(Path(name), TOKENIZER_FILES, "copy the tokenizer's files again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # the Rust library raises bare Exception, transformers whatever a damaged file leads to
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise PosttrainError(f"{name}: the tokenizer cannot be read ({reason}); copy its files again") from error
    ids = tokenizer(DIGITS, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    closed = tokenizer.unk_token_id in ids and len(tokenizer.get_vocab()) > len(tokenizer.all_special_ids)
    if "".join(back.split()) != DIGITS and not closed:
        raise PosttrainError(
            f"{name}: its tokenizer turns {DIGITS!r} into {back!r} (of {len(tokenizer.get_vocab())} tokens): the "
            f"vocabulary is missing or damaged; copy the tokenizer's files from the model it was trained from"
        )
    return tokenizer


def token_ids(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Ids of whole texts, nothing added. A third faster than calling the tokenizer, which also builds masks.

    Returns for each text (T,) int32
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def fastest(tokenizer: Any) -> Tokenise:
    """`token_ids` of this tokenizer, through fastokens where that is installed and gives the same ids."""
    exact = functools.partial(token_ids, tokenizer)
    if importlib.util.find_spec("fastokens") is None or os.environ.get(FASTOKENS) == "0":
        return exact
    return FastTokens(tokenizer, exact)


class FastTokens:
    """fastokens, held against the real tokenizer on a sample of every batch; from the first difference on not used."""

    def __init__(self, tokenizer: Any, exact: Tokenise) -> None:
        import fastokens

        self.exact, self.checked = exact, False
        try:
            self.fast = fastokens.Tokenizer.from_json_str(tokenizer.backend_tokenizer.to_str())
        except (ValueError, RuntimeError) as error:
            self.distrust(f"does not read this tokenizer ({error})")

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        if self.fast is None or not texts:
            return self.exact(texts)
        flat, edges = self.fast.encode_batch_flat(texts)
        offsets = np.frombuffer(edges, np.uint64)[1:-1].astype(np.int64)
        ids = np.split(np.frombuffer(flat, np.int32), offsets)
        step = CHECKED if self.checked else max(1, len(texts) // FIRST_CHECKED)
        sample = sorted({*range(0, len(texts), step), max(range(len(texts)), key=lambda i: len(texts[i]))})
        self.checked = True
        for place, real in zip(sample, self.exact([texts[i] for i in sample]), strict=True):
            if not np.array_equal(ids[place], real):
                self.distrust(f"gives other ids for {texts[place][:60]!r}")
                return self.exact(texts)
        return ids

    def distrust(self, why: str) -> None:
        """Say why, and tokenise with the real one from here on."""
        self.fast = None
        warn(f"fastokens {why}: using the tokenizer itself")


def spelled(tokenizer: Any, rows: list[np.ndarray]) -> list[bytes]:
    """What each row of ids stands for. Of byte-level vocabularies by a table, ten times as fast as the tokenizer."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.decoder, ByteLevel):
        return [text.encode() for text in backend.decode_batch(rows, skip_special_tokens=False)]
    table = _byte_table(backend, backend.get_vocab_size())
    flat = table.take(pa.array(np.concatenate([np.empty(0, dtype=np.int32), *rows])))
    edges = np.frombuffer(flat.buffers()[1], np.int32)[np.cumsum([0, *map(len, rows)])]
    text = memoryview(flat.buffers()[2] or b"")
    return [bytes(text[start:end]) for start, end in itertools.pairwise(edges)]


@functools.lru_cache(maxsize=2)
def _byte_table(backend: Any, size: int) -> pa.BinaryArray:
    """The bytes of every id, made again where tokens were added: a byte-level vocabulary writes each as a letter."""
    bytes_of = str.maketrans({letter: chr(byte) for byte, letter in bytes_to_unicode().items()})
    table = [b""] * (max(backend.get_vocab().values()) + 1)
    for token, number in backend.get_vocab(with_added_tokens=False).items():
        table[number] = token.translate(bytes_of).encode("latin-1")
    for number, token in backend.get_added_tokens_decoder().items():
        table[number] = token.content.encode()
    return pa.array(table, pa.binary())
