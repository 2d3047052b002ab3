"""Find the largest micro-batch for every cell of a grid over lengths, checkpointing, attention, optimizer and recipe.

    python src/batch_size.py studies/batch_size.yaml

Each trial takes three real steps on rows of random ids, in a process of its own that may die. The same command goes on
where it stopped; the plan's number stands beside what was measured.
"""

import argparse
from pathlib import Path

from posttrain.console import say
from posttrain.errors import ArgumentParser, check_writable, run_script
from posttrain.locks import lock
from posttrain.pipelines.study.batch_size import read_batch_study, run_batch_study
from posttrain.pipelines.study.heat_map import PICTURE, write_results


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="such a file of studies/")
    arguments = parser.parse_args()
    study = read_batch_study(arguments.study)
    output_dir = Path(study.output_dir)
    check_writable(output_dir)
    lock(output_dir)
    say(f"batch_size {arguments.study} → {output_dir}: {len(study.cells())} cells")
    results = run_batch_study(study)
    say(f"{write_results(results, output_dir)}→ {output_dir / PICTURE}")


if __name__ == "__main__":
    run_script(main)
