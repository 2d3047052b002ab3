"""Compute metrics.json again from the samples on disk, without a model.

    python src/score.py evals/tiny_sft/tiny_1step evals/tiny_sft/tiny_2step [--beside qwen]

The bytes are those that src/eval.py wrote, as long as the rules of posttrain.evaluation.scoring have not changed.
Samples that an older version of the verifier graded are graded again, and it says so.
--beside grades the samples with a published grader as well and names those it decides otherwise; it writes nothing.
"""

import argparse
from pathlib import Path

from posttrain.errors import ArgumentParser, run_script
from posttrain.evaluation.published_graders import NAMES, beside
from posttrain.evaluation.regrading import regrade
from posttrain.evaluation.results import rebuild, table


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="directories evals/<run>/<benchmark>")
    parser.add_argument("--beside", choices=NAMES, help="a published grader to compare with")
    arguments = parser.parse_args()
    for change in filter(None, map(regrade, arguments.results)):
        print(change)
    print(table([rebuild(directory) for directory in arguments.results]))
    for directory in arguments.results if arguments.beside else ():
        print(beside(directory, arguments.beside))


if __name__ == "__main__":
    run_script(main)
