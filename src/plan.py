"""Say what a recipe will take, before anything is loaded: memory, steps, hours, money and disk.

    python src/plan.py recipes/qwen_math_sft.yaml accelerate_configs/zero2.yaml --gpus 8xH100
    python src/plan.py studies/gsm8k_lr.yaml accelerate_configs/single_gpu.yaml --gpus H200 --json
    python src/plan.py outputs/qwen_math_sft                       # why that run ended for memory, or took so long

Of a model its config alone is read. Without --gpus a config for CPUs is held against this machine, and one for GPUs
against every device of the table. Fields of the recipe can be overridden by `--field value`, as in its own script.
"""

import argparse
import json
from pathlib import Path

from posttrain.console import say
from posttrain.errors import ArgumentParser, run_script
from posttrain.pipelines import planning
from posttrain.plan import measured


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", type=Path, help="a recipe, a study, or the directory of a run")
    parser.add_argument("config", type=Path, nargs="?", help="the file of accelerate_configs/ that it will run with")
    parser.add_argument("--gpus", help="the machine, as 8xH100; the names are those of src/posttrain/plan/devices.yaml")
    parser.add_argument("--devices", type=Path, help="devices of your own, in the form of that file")
    parser.add_argument("--explain", action="store_true", help="show the arithmetic")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    arguments, overrides = parser.parse_known_args()
    if arguments.what.is_dir():
        say(measured.explain(arguments.what))
        return
    machine = planning.machine_of(arguments.config, arguments.gpus, arguments.devices)
    plans = planning.plans_of(arguments.what, arguments.config, machine, overrides)
    if arguments.json:
        say(json.dumps({name: plan.as_record() for name, plan in plans.items()}, indent=1))
    else:
        say(planning.text(plans, arguments.what, arguments.config, overrides, arguments.devices, arguments.explain))


if __name__ == "__main__":
    run_script(main)
