"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; banding as in Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3), over shingles of tokens.

The signatures come from `rensa`. Candidates share a band of their signatures; a candidate is a near-duplicate where the
share of equal entries, which estimates the Jaccard similarity with a standard error of at most 0.045, reaches the
threshold. 512 bytes a row, which may lie in a mapped file.
"""

import numpy as np
from rensa import RMinHash

from posttrain.filters import ngram_hashes

SHINGLE = 8  # tokens
ENTRIES = 128
BANDS = 32  # of 4 entries: similar at 0.8 in all but 1e-7 of the pairs, at 0.5 in 87 %
SEED = 42
BLOCK = 65536  # pairs compared at once


def signatures(rows: list[np.ndarray]) -> np.ndarray:
    """MinHash signatures of rows of token ids. Returns (rows, ENTRIES) uint32"""
    shingles = [ngram_hashes(ids, SHINGLE) for ids in rows]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in shingles])]).astype(np.uint64)
    flat = np.concatenate(shingles) if shingles else np.empty(0, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, ENTRIES, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(rows), ENTRIES)


def near_duplicates(signed: np.ndarray, threshold: float) -> np.ndarray:
    """Which rows are almost equal to an earlier one that is kept. signed: (rows, ENTRIES)    returns (rows,) bool

    Rows come in the order in which they are preferred, so the result does not depend on the order they were read in.
    """
    links = np.concatenate([np.empty((0, 2), dtype=np.int64), *(_links(signed, band) for band in range(BANDS))])
    links = np.unique(links, axis=0)
    dropped = np.zeros(len(signed), dtype=bool)
    blocks = [_alike(signed, links[start : start + BLOCK], threshold) for start in range(0, len(links), BLOCK)]
    alike = np.concatenate([np.empty(0, dtype=bool), *blocks])
    for later, earlier in links[alike]:  # sorted by the later row: the earlier one is decided already
        dropped[later] |= not dropped[earlier]
    return dropped


def _links(signed: np.ndarray, band: int) -> np.ndarray:
    """Pairs (later, earlier) of one band: each row with the first and with the last before it of the same band."""
    width = ENTRIES // BANDS
    keys = ngram_key(np.asarray(signed[:, band * width : (band + 1) * width]))
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.empty(0, dtype=np.int64)
    first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    later = np.flatnonzero(same) + 1
    pairs = [np.stack([order[later], order[later - 1]], axis=1), np.stack([order[later], first[later]], axis=1)]
    return np.concatenate(pairs).astype(np.int64)


def ngram_key(entries: np.ndarray) -> np.ndarray:
    """One 64-bit number per row of a band. entries: (rows, width)"""
    keys = np.zeros(len(entries), dtype=np.uint64)
    for column in entries.T.astype(np.uint64):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + column + np.uint64(1)
        keys ^= keys >> np.uint64(31)
    return keys


def _alike(signed: np.ndarray, links: np.ndarray, threshold: float) -> np.ndarray:
    return (signed[links[:, 0]] == signed[links[:, 1]]).mean(axis=1) >= threshold
