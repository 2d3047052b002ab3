"""Mix prepared datasets into one, by shares of the mixture or numbers of rows.

    python data_prep/mix.py data/gsm8k:0.5 data/traces_4096:0.3 data/tiny_math:200 --out data/mixture
    python data_prep/mix.py data/a:0.7 data/b:0.3 --n 10000 --out data/mixture

An amount with a point is a share of the whole mixture, one without is a number of rows: above, the 200 rows are the
fifth that the shares leave. Shares alone add up to 1, and the mixture is as large as its sources allow, or has `--n`
rows. Rows are chosen by content hash. Validation rows of all sources are kept, and no question of theirs is trained on.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.console import counts_line, say
from posttrain.data.manifest import HISTOGRAM_STEP, Source, clear, write_manifest
from posttrain.data.mixing import (
    Loaded,
    Part,
    Rows,
    candidates,
    joined,
    load,
    near_duplicates_across,
    parse_part,
    quotas,
)
from posttrain.data.rows import write_table
from posttrain.data.token_files import ids_path
from posttrain.errors import ArgumentParser, bounded, check_writable, run_script
from posttrain.locks import locked


def main() -> None:
    asked = parse_arguments()
    parts = [parse_part(text) for text in asked.parts]
    sources = [load(part.directory) for part in parts]
    there = candidates(sources)
    numbers = quotas(parts, [len(places) for places in there.train], asked.n)
    chosen = {
        "train": [places[:n] for places, n in zip(there.train, numbers, strict=True)],
        "validation": there.validation,
    }
    mixture = {split: Mixed.of(sources, places, split) for split, places in chosen.items() if any(map(len, places))}
    across = near_duplicates_across(mixture["train"].tables, asked.near_duplicates) if asked.near_duplicates else None
    about = facts(parts, sources, there, mixture, across)
    check_writable(asked.out)
    with locked(asked.out):
        clear(asked.out)
        key = shared_key(sources)
        files = [file for split, mixed in mixture.items() for file in write_split(asked.out, split, mixed, key)]
        write_manifest(asked.out, files, about.pop("source"), about)
    for row in about["mixture"]["parts"]:
        say(f"  {row['rows']:>9,} of {row['available']:>9,}  {row['dataset']}")
    near = "" if across is None else f"; {across:,} near-duplicates across sources"
    print(f"{asked.out}: {counts_line(about['counts'])}{near}; token ids {about['mixture']['token_ids']}")


@dataclass(frozen=True)
class Mixed:
    """The rows of one split, a table for each source that has some, and their token ids in the same order."""

    directories: list[Path]
    tables: list[pa.Table]
    ids: list[pa.Table]

    @classmethod
    def of(cls, sources: list[Loaded], places: list[np.ndarray], split: str) -> "Mixed":
        pairs = [(source, chosen) for source, chosen in zip(sources, places, strict=True) if len(chosen)]
        return cls(
            [source.directory for source, _ in pairs],
            [source.splits[split].take(chosen) for source, chosen in pairs],
            [source.ids[split].take(chosen) for source, chosen in pairs if split in source.ids],
        )


def write_split(out: Path, split: str, mixed: Mixed, key: str | None) -> list[Path]:
    """Write a split, and its token ids where all sources have them under one key; returns the files."""
    whole, order = joined(mixed.tables, mixed.directories)
    path = out / f"{split}.parquet"
    tables = {path: whole}
    if key:
        tables[ids_path(path)] = pa.concat_tables(mixed.ids).combine_chunks().take(order)
    for file, table in tables.items():
        write_table(file, table)
    return list(tables)


def shared_key(sources: list[Loaded]) -> str | None:
    """What the token ids of all sources were made under; None where they differ or one has none."""
    keys = {source.key for source in sources}
    return keys.pop() if len(keys) == 1 else None


def facts(
    parts: list[Part], sources: list[Loaded], there: Rows, mixture: dict[str, Mixed], across: int | None
) -> dict[str, Any]:  # fmt: skip
    """What the manifest says: sources and counts, and whether token ids go on to be used."""
    rows = [
        {
            "dataset": str(part.directory), "asked": f"{float(part.share):g}" if part.share is not None else part.count,
            "rows": len(table), "available": len(places), "source": source.manifest["source"],
            "manifest": source.manifest.get("digest"), "decontamination": source.manifest.get("decontamination"),
        }
        for part, source, places, table in zip(parts, sources, there.train, mixture["train"].tables, strict=True)
    ]  # fmt: skip
    read = sum(len(table) for source in sources for table in source.splits.values())
    kept = {split: sum(map(len, mixed.tables)) for split, mixed in mixture.items()}
    dropped = {**there.dropped, "not_chosen": read - sum(there.dropped.values()) - sum(kept.values())}
    tokenizers = {(source.manifest["tokens"] or {}).get("tokenizer") for source in sources}
    key = shared_key(sources)
    why = "reused" if key else "not reused, as they are missing or of different tokenizers: training tokenises"
    licences = " and ".join(sorted({source.manifest["source"]["licence"] for source in sources}))
    digests = {str(s.directory / name): entry["sha256"] for s in sources for name, entry in s.manifest["files"].items()}
    return {
        "source": Source(f"mixture of {', '.join(str(part.directory) for part in parts)}", licences, None, digests),
        "columns": mixture["train"].tables[0].column_names,
        "seed": None,
        "counts": {"read": read, "dropped": {k: n for k, n in dropped.items() if n}, "kept": kept},
        "tokens": {
            "tokenizer": tokenizers.pop() if len(tokenizers) == 1 else None, "step": HISTOGRAM_STEP,
            "histogram": {split: histogram(mixed.tables) for split, mixed in mixture.items()},
        },
        "decontamination": None,
        "ids_key": key,
        "mixture": {"parts": rows, "near_duplicates_across_sources": across, "token_ids": why},
    }  # fmt: skip


def histogram(tables: list[pa.Table]) -> dict[str, int]:
    """Rows per bar of `HISTOGRAM_STEP` tokens, of the rows that somebody counted."""
    lengths = [n for t in tables if "n_tokens" in t.column_names for n in t["n_tokens"].to_pylist() if n is not None]
    bars = Counter(n // HISTOGRAM_STEP * HISTOGRAM_STEP for n in lengths)
    return {str(bar): bars[bar] for bar in sorted(bars)}


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="DIRECTORY:AMOUNT", help="a share (0.5) or a number of rows (200)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the mixture")
    parser.add_argument("--n", type=bounded(1), help="rows of a mixture of shares alone")
    parser.add_argument(
        "--near-duplicates",
        type=bounded(0, 1, float),
        default=0.8,
        help="similarity from which rows are counted as such; 0: do not",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
