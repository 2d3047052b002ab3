"""Show, extend or restore the rotary base and the longest position of a model directory.

    python src/rope.py show MODEL
    python src/rope.py extend MODEL OUT --theta 300000 --positions 32768
    python src/rope.py restore MODEL OUT

Nothing is changed in place; weights are linked, not copied.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.models.rope import extend, read_rope, restore


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("show", "extend", "restore"):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        if name != "show":
            command.add_argument("out", type=Path)
    commands.choices["extend"].add_argument(
        "--theta", type=bounded(1, kind=float), required=True, help="the new rotary base"
    )
    commands.choices["extend"].add_argument(
        "--positions", type=bounded(1), required=True, help="the new longest position"
    )
    commands.choices["extend"].add_argument("--reason", default="", help="why; it is kept in rope_lock.json")
    asked = parser.parse_args()
    if asked.command == "extend":
        extend(asked.model, asked.out, asked.theta, asked.positions, asked.reason)
    elif asked.command == "restore":
        restore(asked.model, asked.out)
    shown = asked.model if asked.command == "show" else asked.out
    print(f"{shown}: " + ", ".join(f"{key} {value}" for key, value in asdict(read_rope(shown)).items()))


if __name__ == "__main__":
    run_script(main)
