"""Run a grid over any fields of a recipe, each cell as a normal run, and write one report.

    POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml python src/study.py studies/tiny_scaling.yaml
    … python src/study.py studies/gsm8k_scaling.yaml --gpus 0,1,2,3          # one cell per GPU at a time
    … python src/study.py studies/gsm8k_scaling.yaml --share 0/4             # a job of slurm/study.sbatch

Each run and evaluation is a command that is printed and can be run by hand. The same command goes on where it stopped.
"""

import argparse
from pathlib import Path

from posttrain.console import header, say
from posttrain.errors import ArgumentParser, check_writable, run_script, share
from posttrain.locks import LOCK_FILE, lock
from posttrain.pipelines.study.study import REPORT, check_finished, facts, read_study, run_study
from posttrain.pipelines.study.study_report import write_report


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="file of studies/")
    parser.add_argument("--gpus", default="", help="CUDA devices, separated by commas; each takes one cell at a time")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--share", type=share, help="K/N: the Kth of N shares of the cells, for an array of jobs")
    one.add_argument("--report-only", action="store_true", help="rewrite the report of a finished study")
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    output_dir = Path(study.output_dir)
    check_writable(output_dir)
    if arguments.report_only:
        check_finished(study)
    else:
        k, n = arguments.share or (0, 1)
        lock(output_dir, f".share_{k}_of_{n}.lock" if arguments.share else LOCK_FILE)
        say(f"study {arguments.study} → {output_dir}\n{header(facts(study))}")
        run_study(study, [gpu for gpu in arguments.gpus.split(",") if gpu], (k, n))
    if arguments.share:
        say(f"share {k} of {n}, from 0, is done; when all are, --report-only writes the report")
        return
    say(f"{write_report(study, output_dir / REPORT)}→ {output_dir / REPORT}")


if __name__ == "__main__":
    run_script(main)
