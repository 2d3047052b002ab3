"""Compare two checkpoints on the benchmarks that both were evaluated on: is B better than A?

    python src/compare.py evals/tiny_base evals/tiny_sft [--flips 3] [--lengths]
    python src/compare.py evals/by_transformers evals/by_vllm --agreement 5

Refuses, with the field's name, where the two were not evaluated alike. --flips shows answers that changed, --lengths
accuracy among answers of like length. --agreement is for the same weights under two backends: how many answers are the
same in text and verdict, where the others part, and the first of them.
"""

import argparse
from pathlib import Path

from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.evaluation.agreement import agreement_table
from posttrain.evaluation.comparison import Comparison, ComparisonError, compare, length_table, table
from posttrain.evaluation.results import METRICS_FILE, read_samples


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="evals/<run> of the baseline")
    parser.add_argument("b", type=Path, help="evals/<run> of the candidate")
    parser.add_argument(
        "--flips", type=bounded(0), default=0, help="changed answers to show per benchmark and direction"
    )
    parser.add_argument("--lengths", action="store_true", help="accuracy by the length of the answer, in A's bins")
    parser.add_argument("--agreement", type=bounded(0), metavar="N", help="answer by answer, and N that part")
    parser.add_argument("--shared", action="store_true", help="on the questions both answered, where limit differs")
    arguments = parser.parse_args()

    shared = sorted(
        path.parent.name
        for path in arguments.a.glob(f"*/{METRICS_FILE}")
        if (arguments.b / path.parent.name / METRICS_FILE).is_file()
    )
    if not shared:
        raise ComparisonError(f"{arguments.a} and {arguments.b}: share no finished benchmark")
    comparisons = [compare(arguments.a / name, arguments.b / name, arguments.shared) for name in shared]
    print(table(comparisons))
    for name in shared if arguments.agreement is not None else ():
        print("\n" + agreement_table(arguments.a / name, arguments.b / name, arguments.agreement))
    for comparison in comparisons if arguments.lengths else ():
        print("\n" + length_table(comparison))
    for comparison in comparisons if arguments.flips else ():
        show_flips(comparison, arguments.a, arguments.b, arguments.flips)


def show_flips(comparison: Comparison, a: Path, b: Path, n: int) -> None:
    samples = []
    for path in (a, b):
        samples.append({sample["id"]: sample for sample in read_samples(path / comparison.benchmark)[1]})
    for title, ids in (("B right, A wrong", comparison.better), ("A right, B wrong", comparison.worse)):
        for question in ids[:n]:
            print(f"\n{comparison.benchmark} {question}: {title}, gold {samples[0][question]['gold']}")
            for name, side in zip("AB", samples, strict=True):
                print(f"  {name}: {side[question]['completion'][-200:]!r}")


if __name__ == "__main__":
    run_script(main)
