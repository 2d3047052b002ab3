"""Prepare declared benchmarks, from the hub or from a local file, and check their gold answers.

    python data_prep/benchmarks.py math500 aime24 amc23
    python data_prep/benchmarks.py aime24 --file aime24.jsonl

The declarations are in src/posttrain/data/benchmarks.yaml. A set of another size, a question that comes twice and a
gold that the grader does not find equal to itself each end the run with their place.
"""

import argparse
from pathlib import Path

from posttrain.data.benchmark_rows import Declaration, check_rows, to_rows
from posttrain.data.benchmarks import declaration
from posttrain.data.manifest import write_dataset
from posttrain.data.records import local_source, read_hub, read_json_lines
from posttrain.errors import ArgumentParser, run_script

LICENCE = "as stated by the source"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", metavar="name", help="with a hub entry in src/posttrain/data/benchmarks.yaml"
    )
    parser.add_argument("--file", type=Path, help="local JSON lines with the declared columns")
    parser.add_argument("--revision", help="another commit on the hub than the declared one; recorded")
    parser.add_argument("--out", type=Path, default=Path("data"), help="directory of datasets")
    arguments = parser.parse_args()

    if len(arguments.names) > 1 and (arguments.file or arguments.revision):
        parser.error("--file and --revision are of one benchmark")
    declared = {name: declaration(name) for name in arguments.names}
    for name in arguments.names:
        prepare(name, declared[name], arguments)


def prepare(name: str, declared: Declaration, arguments: argparse.Namespace) -> None:
    """Read, check and write one benchmark."""
    if arguments.file:
        records = read_json_lines(arguments.file)
        source = local_source(declared["hub"], LICENCE, [arguments.file])
    else:
        revision = arguments.revision or declared["revision"]
        splits, source = read_hub(declared["hub"], LICENCE, [declared["split"]], revision, declared.get("config"))
        records = splits[declared["split"]]
    rows = to_rows(records, declared, name)
    check_rows(rows, declared, source.id)
    directory = (arguments.out / declared["file"]).parent
    write_dataset(directory, {"test": rows}, source, seed=None, dropped={}, tokenizer=None)
    print(f"{directory}: {len(rows)} questions")


if __name__ == "__main__":
    run_script(main)
