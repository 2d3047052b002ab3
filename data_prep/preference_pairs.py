"""Make preference pairs from verified samples: a right and a wrong answer to the same question.

    python data_prep/preference_pairs.py outputs/tiny_samples --out data/tiny_pairs
    python data_prep/preference_pairs.py outputs/tiny_samples --out data/tiny_outcomes --outcomes
    python data_prep/preference_pairs.py --audit data/tiny_pairs

Reads directories that src/sample.py finished (expert iteration leaves one in every round) and rejection_buffer.jsonl
files. `--outcomes` writes single samples with whether they were right instead, for src/value.py. `--audit` grades every
pair anew.
"""

import argparse
from pathlib import Path

from posttrain.console import counts_line
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.pipelines.preference_data import audit_pairs, write_outcomes, write_pairs


def main() -> None:
    arguments = parse_arguments()
    if arguments.audit:
        print(f"{arguments.audit}: {audit_pairs(arguments.audit)} pairs, every one verified again")
        return
    if arguments.outcomes:
        counts = write_outcomes(arguments.samples, arguments.out, arguments.validation)
    else:
        counts = write_pairs(arguments.samples, arguments.out, arguments.validation, arguments.max_per_question)
    print(f"{arguments.out}: {counts_line(counts)}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="*", help="directories of src/sample.py, or rejection buffers")
    parser.add_argument("--out", type=Path, help="directory of the dataset")
    parser.add_argument("--validation", type=bounded(0), default=50, help="questions held out, chosen by content hash")
    parser.add_argument(
        "--max-per-question", type=bounded(1), help="pairs of one question, so that no question outweighs others"
    )
    parser.add_argument("--outcomes", action="store_true", help="single samples and their outcome instead of pairs")
    parser.add_argument("--audit", type=Path, metavar="DATASET", help="grade a dataset of pairs anew instead")
    arguments = parser.parse_args()
    if not arguments.audit and not (arguments.samples and arguments.out):
        parser.error("expected samples and --out, or --audit")
    missing = [str(path) for path in arguments.samples if not path.exists()]
    if missing:
        parser.error(f"no such file or directory: {', '.join(missing)}")
    return arguments


if __name__ == "__main__":
    run_script(main)
