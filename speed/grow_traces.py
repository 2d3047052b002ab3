"""Copy traces to any amount; in each copy every lower-case word is replaced by another of the same length.

    python speed/grow_traces.py ../shared/data/traces/mip_traces.jsonl grown.jsonl --gigabytes 10

So copies are no near-duplicates of each other, and take about as many tokens; their answers mean nothing (--no-gold).
"""

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

from posttrain.data.records import read_json_lines

WORD = re.compile(r"(?<![\\A-Za-z])([a-z]{3,})(?![A-Za-z])")  # no LaTeX command
TEXTS = ("question", "response")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSON lines with question and response")
    parser.add_argument("out", type=Path)
    parser.add_argument("--gigabytes", type=float, required=True)
    arguments = parser.parse_args()
    rows = read_json_lines(arguments.source)
    pieces = [{name: WORD.split(row[name]) for name in TEXTS} for row in rows]  # words at odd places
    by_length: dict[int, set[str]] = defaultdict(set)
    for word in (word for piece in pieces for name in TEXTS for word in piece[name][1::2]):
        by_length[len(word)].add(word)
    written = copy = 0
    with arguments.out.open("w") as file:
        while written < arguments.gigabytes * 1e9:
            other = exchange(by_length, random.Random(copy))
            for row, piece in zip(rows, pieces, strict=True):
                texts = {name: "".join(exchanged(piece[name], other)) for name in TEXTS}
                written += file.write(json.dumps({**row, **texts}) + "\n")
            copy += 1
    print(f"{arguments.out}: {copy} copies, {copy * len(rows)} rows, {written / 1e9:.2f} GB")


def exchanged(parts: list[str], other: dict[str, str]) -> list[str]:
    """The pieces of a text, those at odd places exchanged."""
    return [other[part] if i % 2 else part for i, part in enumerate(parts)]


def exchange(by_length: dict[int, set[str]], generator: random.Random) -> dict[str, str]:
    """Another word for every word."""
    other = {}
    for words in map(sorted, by_length.values()):
        other |= zip(words, generator.sample(words, len(words)), strict=True)
    return other


if __name__ == "__main__":
    main()
