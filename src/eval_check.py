"""Check whether an evaluation reproduces a published score of its model, set and setting; if not, exit with code 1.

python src/eval.py recipes/eval_check.yaml
python src/eval_check.py evals/Qwen-Qwen2.5-Math-1.5B/math500
"""

import argparse
import json
import sys
from pathlib import Path

from posttrain.errors import PosttrainError, run_script
from posttrain.evaluation.reference import find_reference, verdict
from posttrain.evaluation.results import METRICS_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="directory evals/<model>/<benchmark>")
    path = parser.parse_args().result / METRICS_FILE
    if not path.is_file():
        raise PosttrainError(f"{path}: missing; evaluate first: python src/eval.py recipes/eval_check.yaml")
    metrics = json.loads(path.read_text())
    within, said = verdict(metrics, find_reference(metrics))
    print(said)
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    run_script(main)
