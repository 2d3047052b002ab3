"""Turn multiple-choice questions about facts (OMCQ) into conversations, or make the questions from triples first.

    python data_prep/omcq.py --input sft_data/omcq_trex_data.json --output sft_data/omcq_trex_sft.jsonl
    python data_prep/omcq.py --triples triples.jsonl --input sft_data/omcq_trex_data.json  # makes the questions first

The input is a JSON array of {"target": [{"question", "options", "correct_answer", "uuid"}]}; it is read piece by piece,
so its size does not matter. Triples are JSON Lines with subject, relation and object; a relation may be a Wikidata
property.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from posttrain.console import counted
from posttrain.data.records import read_json_lines
from posttrain.data.sources.omcq import convert, generate, read_triples, write_questions
from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script
from posttrain.locks import locked_file


def main() -> None:
    arguments = parse_arguments()
    with locked_file(arguments.output), locked_file(arguments.input) if arguments.triples else nullcontext():
        prepare(arguments)


def prepare(arguments: argparse.Namespace) -> None:
    """Make the questions where that is asked for, and conversations of them."""
    if arguments.triples:
        if arguments.input.exists():
            raise PosttrainError(f"{arguments.input}: exists; --triples writes there, so name a new file by --input")
        triples = read_triples(read_json_lines(arguments.triples), arguments.triples)
        questions, dropped = generate(triples, arguments.seed)
        write_questions(arguments.input, questions)
        print(f"{arguments.input}: {len(questions)} questions of {len(triples)} triples, dropped {counted(dropped)}")
    converted, skipped = convert(arguments.input, arguments.output, arguments.max_samples)
    print(f"{arguments.output}: converted {converted}, skipped {skipped}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("sft_data/omcq_trex_data.json"), help="JSON array")
    parser.add_argument("--output", type=Path, default=Path("sft_data/omcq_trex_sft.jsonl"))
    parser.add_argument("--max-samples", type=bounded(1), help="stop after so many conversations; all without it")
    parser.add_argument("--triples", type=Path, help="JSON Lines of facts; --input is made from them first")
    parser.add_argument(
        "--seed", type=bounded(0, 2**63), default=0, help="draws the wrong options and the place of the right one"
    )
    arguments = parser.parse_args()
    if arguments.max_samples is not None and arguments.max_samples < 1:
        parser.error("--max-samples must be 1 or more")
    return arguments


if __name__ == "__main__":
    run_script(main)
