"""Texts to token ids in batches, and the optional `fastokens` package in place of the tokenizer where both agree."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Tokenise = Callable[[list[str]], list[list[int]]]
CHECKED = 32  # one text in so many, and the longest of every batch, is encoded by both


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of whole texts, nothing added. A third faster than calling the tokenizer, which also builds masks."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def fastest(tokenizer: Any) -> Tokenise:
    """`token_ids` of this tokenizer, through fastokens where that is installed and gives the same ids."""
    exact = functools.partial(token_ids, tokenizer)
    if importlib.util.find_spec("fastokens") is None:
        return exact
    return FastTokens(tokenizer, exact)


class FastTokens:
    """fastokens, held against the real tokenizer on a sample of every batch; from the first difference on not used."""

    def __init__(self, tokenizer: Any, exact: Tokenise) -> None:
        import fastokens

        self.exact = exact
        try:
            self.fast = fastokens.Tokenizer.from_json_str(tokenizer.backend_tokenizer.to_str())
        except (ValueError, RuntimeError) as error:
            self.distrust(f"does not read this tokenizer ({error})")

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self.fast is None or not texts:
            return self.exact(texts)
        flat, edges = self.fast.encode_batch_flat(texts)
        offsets = np.frombuffer(edges, np.uint64)[1:-1].astype(np.int64)
        ids = [part.tolist() for part in np.split(np.frombuffer(flat, np.uint32), offsets)]
        sample = {*range(0, len(texts), CHECKED), max(range(len(texts)), key=lambda i: len(texts[i]))}
        for place, real in zip(sorted(sample), self.exact([texts[i] for i in sorted(sample)]), strict=True):
            if ids[place] != real:
                self.distrust(f"gives other ids for {texts[place][:60]!r}")
                return self.exact(texts)
        return ids

    def distrust(self, why: str) -> None:
        """Say why, and tokenise with the real one from here on."""
        self.fast = None
        print(f"fastokens {why}: using the tokenizer itself", file=sys.stderr)
