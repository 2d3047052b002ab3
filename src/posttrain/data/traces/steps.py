"""The steps of `data_prep/filter_traces.py` between its options and its files."""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from posttrain.console import Progress, plural
from posttrain.data import token_files
from posttrain.data.manifest import HISTOGRAM_STEP, Source
from posttrain.data.records import SourceError
from posttrain.data.rows import ROW_SCHEMA
from posttrain.data.traces import selection
from posttrain.data.traces.contamination import NGRAM, Index
from posttrain.data.traces.inputs import Input, find_inputs, hub_input
from posttrain.data.traces.parts import Settings, read_part, unread_columns
from posttrain.data.traces.workers import Tasks, make_parts, make_parts_by_tasks
from posttrain.errors import printable

MB = 1_000_000
BAD_LINES = 20  # named; all are counted


def find_source(arguments: argparse.Namespace) -> tuple[list[Input], Source]:
    """The inputs and where they came from."""
    if arguments.hub:
        one, revision = hub_input(arguments.hub, arguments.hub_config, arguments.hub_split, arguments.revision)
        return [one], Source(arguments.source or arguments.hub, arguments.licence, revision)
    inputs = find_inputs(arguments.inputs, int(arguments.max_row_mb * 2**20))
    name = arguments.source or arguments.inputs[0].name.partition(".")[0]
    return inputs, Source(name, arguments.licence, sha256={one.name: one.digest for one in inputs})


def all_parts(
    inputs: list[Input], settings: Settings, index: Index, work: Path, arguments: argparse.Namespace
) -> tuple[list[Path], int, str]:
    """Every part on disk, the bytes of lines behind them, and the key of their ids; with `--share` none of them."""
    from posttrain.data.encode import load_tokenizer

    tokenizer = load_tokenizer(settings.tokenizer, settings.revision, settings.eos_token)
    key = token_files.ids_key(tokenizer, settings.prompt, tokenizer.eos_token)
    settings = dataclasses.replace(settings, eos_token=tokenizer.eos_token)
    directory, processes = settings.directory(work, key, index), arguments.processes
    if arguments.tasks:
        tasks = Tasks(arguments.tasks, processes, arguments.share or (0, 1), arguments.slurm)
        make_parts_by_tasks(inputs, settings, index, directory, tasks)
    if arguments.share:
        return [], 0, key
    parts, read_bytes = [], 0
    sizes = [one.path.stat().st_size for one in inputs if one.path]
    progress = Progress("reading", "MB", sum(sizes) // MB)
    for path, size in progress.over(make_parts(inputs, settings, index, directory, processes), counted=False):
        parts.append(path)
        read_bytes += size
        progress.advance(read_bytes // MB - progress.done)
    if not parts:
        raise SourceError(f"{', '.join(one.name for one in inputs)}: no rows there; name inputs that hold some")
    return parts, read_bytes, key


def header_facts(inputs: list[Input], settings: Settings, processes: int) -> dict[str, str]:
    """Lines of the header."""
    size = sum(one.path.stat().st_size for one in inputs if one.path)
    return {
        "data": f"{plural(len(inputs), 'input')}, {size / MB:,.1f} MB",
        "asked": f"prompt {settings.prompt}, tokenizer {settings.tokenizer}",
        "machine": f"CPU, {plural(processes, 'process')}",
    }


def bad_lines(parts: list[Path], inputs: list[Input]) -> list[str]:
    """The first rows that could not be read, as file:line: what is wrong."""
    names = {one.digest[:16]: one.name for one in inputs}
    found: list[str] = []
    for path in parts:
        part = read_part(path, ["number", "reason", "detail"])
        rows = part.filter(pc.equal(part["reason"], "unreadable")).sort_by("number").to_pylist()
        for row in rows:
            found.append(f"{names[path.name[:16]]}:{row['number']}: {row['detail']}")
        if len(found) >= BAD_LINES:
            break
    return found[:BAD_LINES]


def unread_columns_of(parts: list[Path], inputs: list[Input]) -> dict[str, dict[str, int]]:
    """Of each input the columns that may matter and were not read, with the rows that hold something there."""
    names = {one.digest[:16]: one.name for one in inputs}
    found: dict[str, Counter[str]] = {}
    for path in parts:
        if columns := unread_columns(path):
            found.setdefault(names[path.name[:16]], Counter()).update(columns)
    return {name: dict(sorted(columns.items())) for name, columns in found.items()}


def unread_lines(unread: dict[str, dict[str, int]]) -> str:
    """One line for each input: what was not read."""
    lines = []
    for name, columns in unread.items():
        listed = ", ".join(f"{column} ({rows} rows)" for column, rows in columns.items())
        lines.append(f"{printable(name)}: not read, and part of no question or answer here: {listed}\n")
    return "".join(lines)


def first_detail(parts: list[Path]) -> str:
    """What is wrong with one of the rows that the lint refuses or whose gold answer is none, or nothing."""
    for reason in ("untrainable", "bad_gold"):
        for path in parts:
            part = read_part(path, ["reason", "detail"])
            chosen = part.filter(pc.and_(pc.equal(part["reason"], reason), pc.is_valid(part["detail"])))
            if rows := chosen.to_pylist():
                return f"; one that is {reason}: {rows[0]['detail']}"
    return ""


def fault_lines(faults: list[str], n: int) -> str:
    """What is said about rows that could not be read."""
    faults = list(map(printable, faults))
    more = [f"… and {n - len(faults)} more\n"] if n > len(faults) else []
    return "".join([*(f"{fault}\n" for fault in faults), *more])


def facts(
    settings: Settings, limits: selection.Limits, index: Index, key: str, table: selection.Table, split: np.ndarray
) -> dict[str, Any]:
    """What the manifest says beside source and files."""
    kept = {name: int((split == number).sum()) for number, name in enumerate(selection.SPLITS)}
    contaminated = table.touches[table.code == selection.CODES["contaminated"]]
    against = {
        name: {**facts, "rows": int((contaminated >> bit & 1).sum())}
        for bit, (name, facts) in enumerate(index.against.items())
    }
    tokens = {"tokenizer": settings.tokenizer, "step": HISTOGRAM_STEP, "histogram": selection.histogram(table, split)}
    return {
        "columns": ROW_SCHEMA.names,
        "seed": limits.seed,
        "counts": {
            "read": len(table.code),
            "dropped": selection.counts(table),
            "kept": {name: n for name, n in kept.items() if n},
        },
        "tokens": tokens,
        "ids_key": key,
        "filters": {**dataclasses.asdict(limits), **dataclasses.asdict(settings)},
        "decontamination": {"ngram": NGRAM, "against": against} if against else None,
    }
