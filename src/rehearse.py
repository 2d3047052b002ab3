"""Rehearse a recipe on this machine the evening before, with a small model of the same kind.

    python src/rehearse.py recipes/qwen_math_sft.yaml accelerate_configs/zero2.yaml --gpus 8xH100
    python src/rehearse.py recipes/qwen_math_grpo.yaml --tokenizer models/qwen2.5 --stand-in-data
    python src/rehearse.py recipes                          # every recipe of the directory

Rows, answers, rewards, batches, port and disk are checked; then three steps run, are killed and go on, and the result
is merged, evaluated and reported. Without an accelerate config it is that of the recipe's header. Fields of the recipe
can be overridden by `--field value`. Everything is written to --out. The exit code is 1 where something failed.
"""

import argparse
import sys
from pathlib import Path

from posttrain.errors import ArgumentParser, bounded, check_writable, run_script


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe, or a directory of them")
    parser.add_argument("config", type=Path, nargs="?", help="the file of accelerate_configs/ that it will run with")
    parser.add_argument("--out", type=Path, help="directory to write; rehearsals/<name of the recipe> without it")
    parser.add_argument("--models", type=Path, help="a directory of models by the last part of their names on the hub")
    parser.add_argument("--tokenizer", type=Path, help="a directory with the tokenizer, where the hub is out of reach")
    parser.add_argument("--stand-in-data", action="store_true", help="make rows up where the dataset is not prepared")
    parser.add_argument("--paper", action="store_true", help="check on paper alone, and run nothing")
    parser.add_argument("--gpus", help="the real machine, as 8xH100, for the plan")
    parser.add_argument("--disk", type=bounded(0, kind=float), help="free GiB of the real machine")
    given, overrides = parser.parse_known_args()
    check_writable(given.out or Path("rehearsals"))

    from posttrain.pipelines.rehearsal.rehearse import asked_for, rehearse_each

    sys.exit(1 if rehearse_each(asked_for(given, overrides)) else 0)


if __name__ == "__main__":
    run_script(main)
