"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; banding as in Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3), over shingles of tokens.

The signatures come from `rensa`. Candidates share a band of their signatures; a candidate is a near-duplicate where the
share of equal entries, which estimates the Jaccard similarity with a standard error of at most 0.045, reaches the
threshold. 512 bytes a row, of which one band is looked at at a time.
"""

from collections.abc import Callable, Iterable

import numpy as np
from rensa import RMinHash

from posttrain.data.traces.filters import ngram_hashes

SHINGLE = 8  # tokens
ENTRIES = 128
BANDS = 32
WIDTH = ENTRIES // BANDS  # 4 entries a band: similar at 0.8 in all but 1e-7 of the pairs, at 0.5 in 87 %
SEED = 42
BLOCK = 65536  # pairs compared at once


def signatures(rows: list[np.ndarray]) -> np.ndarray:
    """MinHash signatures of rows of token ids. Returns (rows, ENTRIES) uint32"""
    shingles = [ngram_hashes(ids, SHINGLE) for ids in rows]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in shingles])]).astype(np.uint64)
    flat = np.concatenate(shingles) if shingles else np.empty(0, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, ENTRIES, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(rows), ENTRIES)


def near_duplicates(bands: Callable[[], Iterable[np.ndarray]], rows: int, threshold: float) -> np.ndarray:
    """Which rows are almost equal to an earlier one that is kept. Returns (rows,) bool

    `bands` gives the `BANDS` bands of the signatures in turn, (rows, WIDTH) each, and is called twice: there is never
    more than one of them here. Rows come in the order in which they are preferred, so the result does not depend on the
    order they were read in.
    """
    links = np.empty(0, dtype=np.int64)  # later row * rows + earlier row, sorted
    for band in bands():
        links = np.union1d(links, _links(band) @ np.array([rows, 1]))
    equal = np.zeros(len(links), dtype=np.int64)
    for band in bands() if len(links) else ():
        for start in range(0, len(links), BLOCK):
            later, earlier = np.divmod(links[start : start + BLOCK], rows)
            equal[start : start + BLOCK] += (band[later] == band[earlier]).sum(axis=1)
    dropped = np.zeros(rows, dtype=bool)
    for later, earlier in zip(*np.divmod(links[equal >= threshold * ENTRIES], max(1, rows)), strict=True):
        dropped[later] |= not dropped[earlier]  # in this order the earlier one is decided already
    return dropped


def _links(band: np.ndarray) -> np.ndarray:
    """Pairs (later, earlier): each row with the first and with the last before it of the same band."""
    keys = _band_keys(band)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.empty(0, dtype=np.int64)
    first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    later = np.flatnonzero(same) + 1
    pairs = [np.stack([order[later], order[later - 1]], axis=1), np.stack([order[later], first[later]], axis=1)]
    return np.concatenate(pairs).astype(np.int64)


def _band_keys(entries: np.ndarray) -> np.ndarray:
    """One 64-bit number per row of a band. entries: (rows, WIDTH)"""
    keys = np.zeros(len(entries), dtype=np.uint64)
    for column in entries.T.astype(np.uint64):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1)
        keys ^= keys >> np.uint64(31)
    return keys
