"""Questions of the benchmarks as an index of n-grams, and which of them a training question touches.

Words are what remains of NFKC text in lower case when everything but letters and digits is a blank. A question shares
an n-gram with a benchmark's, or, where that has fewer than n words, is equal to it.
"""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.benchmarks import Benchmark, BenchmarkError, declarations, load_benchmarks
from posttrain.data.traces.filters import ngram_hashes

NGRAM = 8
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Index:
    """Sorted n-gram hashes, and of each the benchmarks that hold it as bits in the order of `names`."""

    names: tuple[str, ...]
    against: dict[str, dict[str, Any]]
    hashes: np.ndarray
    holders: np.ndarray

    def touched(self, texts: list[str]) -> int:
        """The benchmarks, as bits, that share an n-gram with any of the texts."""
        bits = 0
        for text in texts if len(self.hashes) else ():
            found = question_hashes(text)
            place = np.searchsorted(self.hashes, found).clip(max=len(self.hashes) - 1)
            bits |= int(np.bitwise_or.reduce(self.holders[place[self.hashes[place] == found]], initial=0))
        return bits

    def named(self, bits: int) -> list[str]:
        """Names of the benchmarks in `bits`."""
        return [name for position, name in enumerate(self.names) if bits >> position & 1]


def question_hashes(text: str) -> np.ndarray:
    """Hashes of a text's n-grams of words; of a short text as a whole, which no n-gram of a longer one equals."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).lower())
    codes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
    return ngram_hashes(codes, NGRAM)


def build_index(names: str, data_dir: Path) -> Index:
    """The index of prepared benchmarks: `all` that are declared with a number of questions, `none`, or a list."""
    if names == "all":
        names = ",".join(name for name, values in declarations().items() if "n" in values)
    if names == "none":
        return Index((), {}, np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
    try:
        return index_of(load_benchmarks(names, data_dir, limit=None))
    except BenchmarkError as error:
        raise BenchmarkError(
            f"{error}; or name those to decontaminate against: --decontaminate gsm8k,math500, or none"
        ) from error


def index_of(benchmarks: list[Benchmark]) -> Index:
    """The index of loaded benchmarks."""
    found: dict[int, int] = {}
    for position, benchmark in enumerate(benchmarks):
        for row in benchmark.rows:
            for value in question_hashes(row["prompt"][-1]["content"]).tolist():
                found[value] = found.get(value, 0) | 1 << position
    hashes = np.array(sorted(found), dtype=np.uint64)
    against = {b.name: {"sha256": b.sha256, "questions": len(b.rows)} for b in benchmarks}
    holders = np.array([found[value] for value in hashes.tolist()], dtype=np.int64)
    return Index(tuple(against), against, hashes, holders)
