"""Say what runs: unfinished runs with their machines, port and last step, and the vLLM servers of this machine.

python src/status.py
python src/status.py /shared/outputs
"""

import argparse
from pathlib import Path

from posttrain.console import say
from posttrain.errors import ArgumentParser, run_script
from posttrain.pipelines.status import runs, servers


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"), help="where runs lie")
    lines = [*runs(parser.parse_args().outputs), *servers()]
    say("\n".join(lines or ["nothing runs"]))


if __name__ == "__main__":
    run_script(main)
