"""Turn traces of any source into a dataset: keep what fits the budget and is right, count the rest by reason.

    python data_prep/filter_traces.py traces.jsonl more/ --tokenizer Qwen/Qwen2.5-Math-1.5B --prompt r1_zero \\
        --eos-token '<|endoftext|>' --max-tokens 4096 --out data/traces_4096
    python data_prep/filter_traces.py --hub nvidia/OpenMathReasoning --hub-split cot --order-by pass_rate_72b_tir …

Lengths are counted on the ids that training will see, end token included; those ids are kept beside the rows, and
src/sft.py uses them. Tokenising is done once: another budget, cap or --n over the same input takes seconds. A command
that was interrupted continues. Reasons, and what the files hold: src/posttrain/data/traces/filters.py.
"""

import argparse
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.console import counted, header, say, warn
from posttrain.data.json_text import ROW_BYTES
from posttrain.data.manifest import clear, write_manifest
from posttrain.data.traces import selection, writer
from posttrain.data.traces.contamination import build_index
from posttrain.data.traces.filters import REASONS
from posttrain.data.traces.inputs import Input
from posttrain.data.traces.parts import Settings
from posttrain.data.traces.shapes import Shape
from posttrain.data.traces.steps import (
    all_parts,
    bad_lines,
    facts,
    fault_lines,
    find_source,
    first_detail,
    header_facts,
    unread_columns_of,
    unread_lines,
)
from posttrain.data.traces.workers import start_forkserver
from posttrain.errors import ArgumentParser, PosttrainError, bounded, check_writable, run_script, share
from posttrain.locks import lock


def main() -> None:
    arguments = parse_arguments()
    if not arguments.dry_run:
        check_writable(arguments.out)
    if not arguments.dry_run and not arguments.share:
        lock(arguments.out)
    if arguments.processes > 1:
        start_forkserver()
    inputs, source = find_source(arguments)
    index = build_index(arguments.decontaminate, arguments.data_dir)
    settings, limits = settings_of(arguments, source.id), limits_of(arguments)
    work = arguments.work_dir or arguments.out.parent / ".filter_traces"
    say(f"filter_traces → {arguments.out}\n{header(header_facts(inputs, settings, arguments.processes))}")
    with tempfile.TemporaryDirectory() if arguments.dry_run else nullcontext(work) as directory:
        # 1. Every row by itself: parsed, rendered, tokenised, checked.
        parts, read_bytes, key = all_parts(inputs, settings, index, Path(directory), arguments)
        if arguments.share:
            k, n = arguments.share
            say(f"share {k} of {n}, from 0, is made; when all are, the same command without --share writes the dataset")
            return
        table = selection.load_table(parts)
        tell_faults(parts, inputs, table, arguments.strict)
        unread = unread_columns_of(parts, inputs)
        print(unread_lines(unread), end="", file=sys.stderr)

        # 2. All rows together: budget, duplicates, caps, number.
        split = selection.decide(table, limits, parts)
        kept = tell_counts(table, split, arguments.n)
        if arguments.dry_run:
            return
        require_rows(kept, arguments, parts)

        # 3. The files, and last the manifest.
        clear(arguments.out)
        files = writer.write_files(arguments.out, parts, read_bytes, table, split, key, arguments.keep_dropped)
        about = facts(settings, limits, index, key, table, split) | {"columns_not_read": unread}
        write_manifest(arguments.out, files, source, about)
        say(f"{arguments.out}: {counted(kept)}")


def tell_faults(parts: list[Path], inputs: list[Input], table: selection.Table, strict: bool) -> None:
    """Name the first rows that could not be read, and end there where that is asked for."""
    faults, n_bad = bad_lines(parts, inputs), int((table.code == selection.CODES["unreadable"]).sum())
    print(fault_lines(faults, n_bad), end="", file=sys.stderr)
    if n_bad and strict:
        raise PosttrainError(f"{n_bad} rows that cannot be read, the first of them {faults[0]} (--strict)")


def tell_counts(table: selection.Table, split: np.ndarray, wanted: int | None) -> dict[str, int]:
    """Print what became of the rows; returns the number that is kept of each split."""
    kept = {name: int((split == number).sum()) for number, name in enumerate(selection.SPLITS)}
    say(report(len(table.code), selection.counts(table), kept))
    if wanted is not None and sum(kept.values()) < wanted:
        warn(f"{sum(kept.values())} rows are all there are, not the {wanted} of --n")
    return kept


def require_rows(kept: dict[str, int], arguments: argparse.Namespace, parts: list[Path]) -> None:
    """Raise PosttrainError where nothing would be trained on."""
    if kept["validation"] and not kept["train"]:
        raise PosttrainError(
            f"--validation {arguments.validation}: takes all {kept['validation']} rows that are kept, whole questions "
            f"at a time, and leaves none to train on; lower it"
        )
    if not kept["train"]:
        raise PosttrainError(f"{arguments.out}: no row is left to train on; see the reasons above{first_detail(parts)}")


def report(n_read: int, dropped: dict[str, int], kept: dict[str, int]) -> str:
    """The table of what became of the rows."""
    lines = [f"{'read':16}{n_read:>10,}"]
    lines += [f"  {reason:14}{n:>10,}  {REASONS[reason]}" for reason, n in dropped.items()]
    return "\n".join([*lines, *(f"{name:16}{n:>10,}" for name, n in kept.items())])


def settings_of(arguments: argparse.Namespace, source: str) -> Settings:
    """What decides about a row by itself."""
    return Settings(
        tokenizer=arguments.tokenizer,
        revision=arguments.tokenizer_revision,
        prompt=arguments.prompt,
        eos_token=arguments.eos_token,
        require_think=arguments.require_think or arguments.prompt == "r1_zero",
        check_answer=not arguments.no_gold,
        max_repeats=arguments.max_repeats,
        source=source,
        shape=Shape(arguments.prompt_template, arguments.response_template, arguments.gold_column, arguments.order_by),
        control_tokens=arguments.control_tokens,
    )


def limits_of(arguments: argparse.Namespace) -> selection.Limits:
    """What decides about rows together."""
    near = None if arguments.near_duplicates == 0 else arguments.near_duplicates
    return selection.Limits(
        arguments.max_tokens, arguments.length_of, arguments.min_tokens, near, arguments.max_per_source,
        arguments.n, arguments.validation, arguments.order_by, arguments.seed,
    )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("inputs", nargs="*", type=Path, help="files, or directories of .jsonl, .json, .csv, .parquet (.gz, .zst, …)")
    add("--hub", help="a dataset of the hub instead")
    add("--hub-config", help="configuration of the dataset of --hub")
    add("--hub-split", default="train")
    add("--revision", help="commit on the hub; its newest without it, and recorded")
    add("--source", help="name of the source in the rows that name none; else --hub, or the first input's name")
    add("--licence", default="as stated by the source")
    add("--out", type=Path, required=True, help="directory of the dataset")
    add("--tokenizer", required=True, help="directory or hub name: the model that will be trained")
    add("--tokenizer-revision")
    add("--prompt", default="chat", help="as in the recipe: chat, or a file of posttrain/data/prompts")
    add("--eos-token", help="as in the recipe; the tokenizer's own without it")
    add("--max-tokens", type=bounded(1), required=True, help="the budget: the recipe's max_length")
    add("--length-of", choices=("prompt+response", "response"), default="prompt+response", help="what must fit")
    add("--min-tokens", type=bounded(0), default=2, help="tokens that a response must have, its end token included")
    add("--require-think", action="store_true", help="a response without </think> is unfinished; r1_zero implies it")
    add("--no-gold", action="store_true", help="do not check answers against gold ones")
    add("--max-repeats", type=bounded(1), default=8, help="how often the same 20 tokens may come in a response")
    add(
        "--near-duplicates",
        type=bounded(0, 1, float),
        default=0.8,
        help="similarity from which a row is one; 0 keeps them",
    )
    add("--decontaminate", default="all", help="benchmarks separated by commas, all, or none")
    add("--data-dir", type=Path, default=Path("data"), help="where the prepared benchmarks lie")
    add("--max-per-source", type=bounded(0), help="rows to keep of one source at most")
    add("--order-by", help="column of a pass rate; the highest are taken first, and a row without number is dropped")
    add("--n", type=bounded(0), help="rows to keep, by a seeded hash of their content")
    add("--validation", type=bounded(0), default=0, help="rows of these to hold out, whole questions at a time")
    add("--seed", type=bounded(0, 2**63), default=42)
    add("--prompt-template", help="question from columns: '{subject}: {relation}'; {prompt} is what was found")
    add("--response-template", help="response from columns; {response} is what was found")
    add("--gold-column", help="column of the gold answer, or a field of one with a point: reward_model.ground_truth")
    add("--control-tokens", choices=("drop", "text"), default="drop", help="drop rows that hold one, or make it text")
    add(
        "--max-row-mb",
        type=bounded(0, 2**20, float),
        default=ROW_BYTES / 2**20,
        help="MiB that a row may have once it is unpacked",
    )
    add("--strict", action="store_true", help="end at rows that cannot be read instead of counting them")
    add("--dry-run", action="store_true", help="print the table and write nothing")
    add("--keep-dropped", action="store_true", help="also write dropped.parquet")
    add("--work-dir", type=Path, help="where parts are kept for the next run; .filter_traces beside --out without it")
    add("--processes", type=bounded(1), default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    add("--tasks", type=bounded(1), help="make the parts in so many datatrove tasks, each with its share of the files")
    add("--share", type=share, help="K/N: make the parts of the Kth of N shares of the tasks and end")
    add("--slurm", help="submit the tasks instead: partition:hours:minutes:seconds; --work-dir is shared by the nodes")
    arguments = parser.parse_args()
    check_together(parser, arguments)
    return arguments


def check_together(parser: ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with the first fault that shows only where options stand together."""
    if bool(arguments.inputs) == bool(arguments.hub):
        parser.error("name inputs, or --hub")
    if arguments.max_row_mb == 0:
        parser.error("--max-row-mb is more than 0")
    if (arguments.slurm or arguments.share) and not arguments.tasks:
        parser.error(f"--{'slurm' if arguments.slurm else 'share'} needs --tasks")
    if arguments.share and (arguments.slurm or arguments.dry_run):
        parser.error("--share makes parts, which --slurm submits and --dry-run throws away")


if __name__ == "__main__":
    run_script(main)
