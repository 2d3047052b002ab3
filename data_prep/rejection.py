"""Make training rows from verified samples: accept, select, and write a dataset with its manifest.

    python data_prep/rejection.py outputs/tiny_ei/round_1/rollouts --out outputs/tiny_ei/round_1/data
    python data_prep/rejection.py --audit outputs/tiny_ei/round_1/data

Several directories of rollouts make one dataset, in which equal rows are one. `--audit` grades every row of a dataset
anew and fails unless all are correct.
"""

import argparse
from pathlib import Path

from posttrain.console import counts_line
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.pipelines.candidates import ACCEPTS, CORRECT_SCORE, SELECTS, Rule, audit_dataset, write_selection


def main() -> None:
    arguments = parse_arguments()
    if arguments.audit:
        rows = audit_dataset(arguments.audit)
        print(f"{arguments.audit}: {rows} rows, every one verified again")
        return
    rule = Rule(arguments.accept, arguments.select, arguments.threshold, arguments.max_per_question)
    counts = write_selection(arguments.rollouts, rule, arguments.out)
    print(f"{arguments.out}: {counts_line(counts)}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path, nargs="*", help="directories that src/sample.py finished, oldest first")
    parser.add_argument("--out", type=Path, help="directory of the dataset")
    parser.add_argument("--accept", choices=ACCEPTS, default="correct", help="anything else may train on wrong answers")
    parser.add_argument("--select", choices=SELECTS, default="first")
    parser.add_argument(
        "--threshold", type=bounded(0, kind=float), default=CORRECT_SCORE, help="for --accept threshold"
    )
    parser.add_argument("--max-per-question", type=bounded(1), help="for --select all_correct")
    parser.add_argument("--audit", type=Path, metavar="DATASET", help="grade a dataset anew instead")
    arguments = parser.parse_args()
    if not arguments.audit and not (arguments.rollouts and arguments.out):
        parser.error("expected directories of rollouts and --out, or --audit")
    return arguments


if __name__ == "__main__":
    run_script(main)
