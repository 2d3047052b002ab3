"""A table of evaluations and a figure of what they and their runs show.

    python src/report.py evals/tiny_base evals/tiny_sft --runs outputs/tiny_sft --out reports/tiny

Writes table.txt, curves.svg and curves.png.
"""

import argparse
from pathlib import Path

from posttrain.errors import run_script
from posttrain.report import comparison_table, read_evaluation, read_run, write_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="directories that src/eval.py wrote, in order")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="directories that a training script wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory for curves.svg, curves.png and table.txt")
    arguments = parser.parse_args()

    evaluations = {path.name: read_evaluation(path) for path in arguments.evaluations}
    runs = {path.name: read_run(path) for path in arguments.runs}
    table = comparison_table(evaluations)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.txt").write_text(table + "\n")
    files = write_figure(evaluations, runs, arguments.out)
    print(f"{table}\n→ {', '.join(str(file) for file in files)}")


if __name__ == "__main__":
    run_script(main)
