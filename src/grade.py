"""What the verifier reads in a text and how it decides, for people who doubt a verdict.

    python src/grade.py --gold 72 --text "The answer is 72 marbles, in total."
    python src/grade.py --gold-file gold.txt --text-file completion.txt
    python src/grade.py --rows samples.jsonl --gold-key gold --text-key completion

Of each text: what was read, from where, its value in one spelling, the verdict and the rules that decided. --lenient
reads what marks no answer, too, which no reward does.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script
from posttrain.grading.grader import Grader
from posttrain.grading.reading.extract import find_answer
from posttrain.grading.reading.golds import read_gold
from posttrain.grading.reading.normalise import normalise
from posttrain.grading.values.exact import explain
from posttrain.grading.values.rational import Tolerance

SHOWN = 200  # characters of a text


def describe(grader: Grader, gold: str, text: str, lenient: bool) -> str:
    """The verdict on one text, in lines."""
    (grade,) = grader.grade([gold], [text], [False], lenient)
    found, expected = find_answer(text, lenient), read_gold(gold)
    lines = [f"gold      {expected!r}, in one spelling {normalise(expected)!r}"]
    if found.answer is None:
        lines.append(f"read      nothing: {found.source}, {found.span[:SHOWN]!r} states no answer for certain")
    else:
        lines.append(f"read      {found.answer!r}, from {found.source}: {found.span[:SHOWN]!r}")
        lines.append(f"value     {normalise(found.answer)!r}")
    lines.append(f"verdict   {grade.verdict.value}")
    if found.answer is not None:
        rules = explain(expected, found.answer)
        rules += ["algebra"] if grade.symbolic else []
        lines.append(f"because   {', then '.join(rules) or 'the texts are the same'}")
    return "\n".join(lines)


def pairs(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Golds and texts of the command line, of two files, or of the rows of one."""
    if arguments.rows:
        for number, line in enumerate(arguments.rows.read_text().split("\n"), start=1):
            if line.strip():
                row = json.loads(line)
                missing = [key for key in (arguments.gold_key, arguments.text_key) if key not in row]
                if missing:
                    raise PosttrainError(f"{arguments.rows}: line {number}: no {missing[0]!r}; it has {', '.join(row)}")
                yield read_gold(row[arguments.gold_key]), str(row[arguments.text_key])
        return
    gold = arguments.gold_file.read_text() if arguments.gold_file else arguments.gold
    text = arguments.text_file.read_text() if arguments.text_file else arguments.text
    if gold is None or text is None:
        raise PosttrainError("expected --gold and --text, their files, or --rows with both; see --help")
    yield gold, text


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gold")
    add("--text", help="what a model wrote")
    add("--gold-file", type=Path)
    add("--text-file", type=Path)
    add("--rows", type=Path, help="JSON lines with both, such as samples.jsonl of an evaluation")
    add("--gold-key", default="gold")
    add("--text-key", default="completion")
    add("--lenient", action="store_true", help="read what marks no answer, too")
    add("--significant-digits", type=bounded(1), help="for golds that are rounded")
    arguments = parser.parse_args()
    digits = arguments.significant_digits
    with Grader(tolerance=Tolerance(significant_digits=digits) if digits else None) as grader:
        for gold, text in pairs(arguments):
            print(describe(grader, gold, text, arguments.lenient), end="\n\n", flush=True)


if __name__ == "__main__":
    run_script(main)
