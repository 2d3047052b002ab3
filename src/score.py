"""metrics.json again from the samples on disk, without a model.

    python src/score.py evals/tiny_sft/tiny_1step evals/tiny_sft/tiny_2step

The bytes are those that src/eval.py wrote, as long as the rules of posttrain.metrics have not changed.
"""

import argparse
from pathlib import Path

from posttrain.errors import run_script
from posttrain.results import rebuild, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="directories evals/<run>/<benchmark>")
    print(table([rebuild(directory) for directory in parser.parse_args().results]))


if __name__ == "__main__":
    run_script(main)
