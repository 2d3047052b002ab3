"""Prepare GSM8K as a dataset, from the hub or from local files.

    python data_prep/gsm8k.py                                            # openai/gsm8k from the hub
    python data_prep/gsm8k.py --train train.jsonl --test test.jsonl      # local JSON lines

Gold is what follows `####`, without commas. The `<<48/2=24>>` calculator marks are dropped unless --keep-marks.
"""

import argparse
from pathlib import Path
from typing import Any

from posttrain.console import counted
from posttrain.data.benchmark_rows import check_golds
from posttrain.data.manifest import write_dataset
from posttrain.data.records import local_source, read_hub, read_json_lines
from posttrain.data.sources import gsm8k
from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script


def main() -> None:
    arguments = parse_arguments()
    if arguments.train:
        files = {"train": arguments.train, "test": arguments.test}
        records = {split: read_json_lines(path) for split, path in files.items()}
        source = local_source(gsm8k.HUB_NAME, gsm8k.LICENCE, list(files.values()))
    else:
        records, source = read_hub(gsm8k.HUB_NAME, gsm8k.LICENCE, ["train", "test"], arguments.revision, "main")
    splits: dict[str, list[Any]] = {}
    dropped: dict[str, int] = {}
    for split, split_records in records.items():
        splits[split], reasons = gsm8k.to_rows(split_records, split, arguments.style, arguments.keep_marks)
        for reason, n in reasons.items():
            dropped[reason] = dropped.get(reason, 0) + n
    check_golds(splits["test"], source.id)
    if arguments.validation >= (n := len(splits["train"])):
        raise PosttrainError(f"--validation {arguments.validation}: takes all {n} training rows; lower it")
    splits = gsm8k.split_validation(splits, arguments.validation)
    if arguments.tokenizer:
        splits = gsm8k.count_tokens(splits, arguments.tokenizer)
    manifest = write_dataset(arguments.out, splits, source, None, dropped, arguments.tokenizer)
    print(f"{arguments.out}: kept {counted(manifest['counts']['kept'])}; dropped {counted(dropped)}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/gsm8k"))
    parser.add_argument("--train", type=Path, help="local JSON lines with question and answer")
    parser.add_argument("--test", type=Path, help="local JSON lines with question and answer")
    parser.add_argument("--revision", help="commit of openai/gsm8k on the hub; its newest without it, and recorded")
    parser.add_argument(
        "--validation", type=bounded(1), default=200, help="training rows held out, chosen by content hash"
    )
    parser.add_argument(
        "--style",
        choices=gsm8k.STYLES,
        default="boxed",
        help="how a solution ends: a sentence with \\boxed{42}, the line #### 42, or r1_zero's tags around it",
    )
    parser.add_argument("--keep-marks", action="store_true", help="keep the calculator marks, <<48/2=24>>")
    parser.add_argument("--tokenizer", help="directory or hub name; counts tokens into the manifest")
    arguments = parser.parse_args()
    if (arguments.train is None) != (arguments.test is None):
        parser.error("--train and --test come together")
    return arguments


if __name__ == "__main__":
    run_script(main)
