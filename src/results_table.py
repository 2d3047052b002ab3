"""Keep finished evaluations in the repository, and write the tables that are made of them.

    python src/results_table.py                      # the tables of docs/results/real_model.md and README.md
    python src/results_table.py --keep evals/sft --run outputs/sft --name sft_128 --title "SFT on 128" --base base

What is kept lies in docs/results/real_model/<name>/<benchmark>; `make score RESULTS=…` computes its metrics again.
"""

import argparse
from pathlib import Path

from posttrain import atomic
from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script
from posttrain.report.kept import keep, table


def main() -> None:
    arguments = parse_arguments()
    if arguments.keep:
        run = arguments.run
        about = keep.About(
            title=arguments.title,
            base=arguments.base,
            command=arguments.command or (keep.command_of(run) if run else None),
            hours=keep.hours_of(run) if arguments.hours is None and run else arguments.hours,
        )
        for place in keep.keep(arguments.keep, run, about, arguments.results / arguments.name):
            print(f"kept: {place}")
    rows = table.read_rows(arguments.results)
    wanted = {arguments.page: table.full_page(rows, arguments.page)}
    if arguments.readme.is_file():
        wanted[arguments.readme] = table.short_table(rows, arguments.readme)
    for page, found in wanted.items():
        write(page, table.put(page.read_text(), found, page), arguments.check)


def write(page: Path, text: str, check: bool) -> None:
    """Write a page whose table has changed; raise where it is only to be checked."""
    if page.read_text() != text:
        if check:
            raise PosttrainError(f"{page}: its table is not that of the files; run python src/results_table.py")
        atomic.write_bytes(page, text.encode())
        print(f"written: {page}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/results/real_model"), help="what is kept")
    parser.add_argument("--page", type=Path, default=Path("docs/results/real_model.md"), help="gets all tables")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="gets the short table")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a table has changed")
    parser.add_argument("--keep", type=Path, metavar="EVAL", help="evals/<run>[/<benchmark>] to keep first")
    parser.add_argument("--name", help="directory of what is kept")
    parser.add_argument("--title", help="its line in the table")
    parser.add_argument("--base", metavar="NAME", help="kept run that it started from, and is compared with")
    parser.add_argument("--run", type=Path, help="outputs/<run> that trained the weights")
    hours = "wall-clock hours; of run.json or seconds.jsonl without it"
    parser.add_argument("--hours", type=bounded(0, kind=float), help=hours)
    parser.add_argument("--command", help="command of the table; that of run.json without it")
    arguments = parser.parse_args()
    if arguments.keep and not (arguments.name and arguments.title):
        parser.error("--keep needs --name and --title")
    return arguments


if __name__ == "__main__":
    run_script(main)
