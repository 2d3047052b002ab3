"""Write the tiny world's datasets: word problems for fine-tuning and evaluation, and plain text for the base model.

    python data_prep/tiny_math.py                            # data/tiny_math
    python data_prep/tiny_math.py --text-lines 400000        # and data/tiny_text
    python data_prep/tiny_math.py --text-lines 400000 --tokenizer-dir assets/tiny_init    # and a new tokenizer

Held-out sets never share a question with training; `test_large` holds numbers above the range of all others.
"""

import argparse
from pathlib import Path

from posttrain.console import counted
from posttrain.data.manifest import Source, write_dataset
from posttrain.data.sources import tiny_tokenizer, tiny_world
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import ArgumentParser, bounded, run_script

SOURCE = Source(id="posttrain.tiny_world", licence="Apache-2.0")


def main() -> None:
    arguments = parse_arguments()
    problems = tiny_world.problem_splits(arguments.seed, arguments.train, arguments.test)
    held_out = {row.prompt[0]["content"] for split, rows in problems.items() if split != "train" for row in rows}
    datasets = {"tiny_math": problems}
    if arguments.text_lines:
        datasets["tiny_text"] = tiny_world.text_splits(arguments.seed, arguments.text_lines, held_out)
    if arguments.tokenizer_dir:
        tiny_tokenizer.write_init(arguments.tokenizer_dir, datasets["tiny_text"]["train"], problems["train"])
    tokenizer = open_tokenizer(arguments.tokenizer)
    for name, splits in datasets.items():
        sized = {split: tiny_tokenizer.count_tokens(rows, tokenizer) for split, rows in splits.items()}
        directory = arguments.out / name
        manifest = write_dataset(directory, sized, SOURCE, arguments.seed, {}, str(arguments.tokenizer))
        print(f"{directory}: {counted(manifest['counts']['kept'])}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"), help="directory of datasets")
    parser.add_argument("--train", type=bounded(1), default=600, help="word problems for training")
    parser.add_argument("--test", type=bounded(1), default=200, help="word problems in each held-out set")
    parser.add_argument(
        "--text-lines", type=bounded(0), default=0, help="also write data/tiny_text, plain text for the base model"
    )
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0)
    parser.add_argument(
        "--tokenizer", type=Path, default=Path("assets/tiny_init"), help="tokenizer that counts the tokens of each row"
    )
    parser.add_argument("--tokenizer-dir", type=Path, help="write a new tokenizer and model config here first")
    arguments = parser.parse_args()
    if arguments.tokenizer_dir and not arguments.text_lines:
        parser.error("--tokenizer-dir trains on plain text; add --text-lines")
    return arguments


if __name__ == "__main__":
    run_script(main)
