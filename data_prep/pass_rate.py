"""Make a dataset with pass rates from verified samples, and pick the questions of a band of difficulty.

    python data_prep/pass_rate.py outputs/tiny_samples --between 0.1 0.9 --out data/tiny_band
    python data_prep/pass_rate.py evals/tiny_sft/train_questions --questions data/tiny_math --out data/tiny_rated
    python data_prep/filter_traces.py data/tiny_rated/train.parquet --order-by pass_rate …

Reads directories that src/sample.py finished, runs of expert iteration (all their rounds), rejection_buffer.jsonl,
and results of an evaluation, whose questions are looked up among the training rows of `--questions`. Each row has
`pass_rate`, its 95 % interval `pass_low` to `pass_high` (Wilson), `samples`, and as completion a right answer of the
model's own where it has one.
"""

import argparse
from pathlib import Path

from posttrain.console import counts_line
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.pipelines.pass_rates import write_pass_rates


def main() -> None:
    asked = parse_arguments()
    counts = write_pass_rates(asked.samples, asked.out, tuple(asked.between), asked.questions, asked.validation)
    print(f"{asked.out}: {counts_line(counts)}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+", help="of src/sample.py, expert iteration or evaluation")
    parser.add_argument("--out", type=Path, required=True, help="directory of the dataset")
    parser.add_argument(
        "--between",
        type=bounded(0, 1, float),
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="the band of pass rates",
    )
    parser.add_argument("--questions", type=Path, help="the prepared dataset that an evaluation's questions are of")
    parser.add_argument("--validation", type=bounded(0), default=0, help="questions held out, chosen by content hash")
    arguments = parser.parse_args()
    missing = [str(path) for path in arguments.samples if not path.exists()]
    if missing:
        parser.error(f"no such file or directory: {', '.join(missing)}")
    if arguments.between[0] > arguments.between[1]:
        parser.error("--between takes the lower number first")
    return arguments


if __name__ == "__main__":
    run_script(main)
