"""Write one page about evaluations and their runs. It opens from disk and needs no network.

    python src/report.py evals/tiny_base evals/tiny_sft --runs outputs/tiny_sft --out reports/tiny

Writes index.html, every figure as SVG and PNG, and table.txt. The first evaluation is the one others are compared with.
"""

import argparse
from pathlib import Path

from posttrain.errors import ArgumentParser, bounded, check_writable, run_script
from posttrain.report.content import comparison_table, read_evaluations, read_runs
from posttrain.report.evaluation_page import write_report
from posttrain.report.memory_banks import read_bank_evaluations


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="*", help="directories that src/eval.py wrote, in order")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="directories that a training script wrote")
    parser.add_argument("--memories", type=Path, nargs="*", default=[], help="directories of src/memory_eval.py")
    parser.add_argument("--out", type=Path, required=True, help="directory of the page")
    parser.add_argument("--title", help="title of the page; the name of its directory without it")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the benchmarks' questions lie")
    parser.add_argument(
        "--questions", type=bounded(0), default=200, help="questions to show for each benchmark; 0 shows all"
    )
    arguments = parser.parse_args()
    if not (arguments.evaluations or arguments.runs or arguments.memories):
        parser.error("name evaluations, --runs, --memories, or several")

    check_writable(arguments.out)
    evaluations = read_evaluations(arguments.evaluations)
    runs = read_runs(arguments.runs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    title = arguments.title or arguments.out.resolve().name
    memories = read_bank_evaluations(arguments.out, arguments.memories)
    page = write_report(arguments.out, title, evaluations, runs, arguments.data_dir, arguments.questions, memories)
    if evaluations:
        table = comparison_table(evaluations)
        (arguments.out / "table.txt").write_text(table + "\n")
        print(table)
    print(f"→ {page}")


if __name__ == "__main__":
    run_script(main)
