"""Check whether an evaluation reproduces a published score of its model, set and setting; if not, exit with code 1.

python src/eval.py recipes/eval_check.yaml
python src/eval_check.py evals/Qwen-Qwen2.5-Math-1.5B/math500
"""

import argparse
import sys
from pathlib import Path

from posttrain.errors import ArgumentParser, run_script
from posttrain.evaluation.reference import find_reference, verdict
from posttrain.evaluation.results import read_metrics


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="directory evals/<model>/<benchmark>")
    metrics = read_metrics(parser.parse_args().result)
    within, said = verdict(metrics, find_reference(metrics))
    print(said)
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    run_script(main)
