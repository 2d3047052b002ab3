"""`src/plan.py`: plans of a recipe or of every cell of a study, on one machine or on every device of the table."""

from pathlib import Path
from typing import Any

import yaml

from posttrain.console import clock
from posttrain.errors import PosttrainError
from posttrain.hardware import parse_config
from posttrain.pipelines.study.study import read_study, train_arguments
from posttrain.plan import measured
from posttrain.plan.devices import Machine, find_machine, read_devices, this_processor
from posttrain.plan.memory.process import gib
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.page import page, verdict
from posttrain.plan.recipe_plan import Plan
from posttrain.recipe.methods import find_method
from posttrain.recipe.reader import read_recipe


def topology_of(config: Path | None) -> Topology:
    """What of an accelerate config decides memory and speed; one process of this machine without a config."""
    if config is None:
        return Topology(use_cpu=True)
    try:
        return Topology.of_config(parse_config(str(config), config.read_text()))
    except OSError as error:
        raise PosttrainError(f"{config}: {error.strerror}; expected a file of accelerate_configs/") from error


def machine_of(config: Path | None, gpus: str | None, own: Path | None) -> Machine | None:
    """The machine that is asked for, this one for a config of CPUs, or None: every device of the table."""
    on_cpu = topology_of(config).use_cpu
    if gpus and config and on_cpu:
        raise PosttrainError(f"--gpus {gpus}: {config} says use_cpu: true; name a config for GPUs")
    if gpus:
        return find_machine(gpus, own)
    return Machine(this_processor(), 1) if on_cpu else None


def plans_of(what: Path, config: Path | None, machine: Machine | None, overrides: list[str]) -> dict[str, Plan]:
    """Plans by name: of a recipe one, of a study one for each cell."""
    topology = topology_of(config)
    if machine and config is None and machine.device.name != this_processor().name:
        topology = Topology(processes=1, autocast=True, checkpointing=True, attention="flash_attention_2")
    runs = measured.earlier_runs()
    return {
        name: measured.plan_with(values, topology, machine, runs)
        for name, values in recipes_of(what, overrides).items()
    }


def recipes_of(what: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """The values of a recipe, or of the recipes of a study's cells, checked as their scripts check them."""
    try:
        content = yaml.safe_load(what.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PosttrainError(f"{what}: not a recipe or a study ({type(error).__name__})") from error
    if not isinstance(content, dict) or not {"trainer", "recipe"} & set(content):
        raise PosttrainError(f"{what}: expected a recipe, which names a trainer, or a study, which names a recipe")
    if "trainer" in content:
        method = find_method(str(content["trainer"]))
        return {str(what): read_recipe([str(what), *overrides], method.name).values}
    study = read_study(what)
    trainer = str(yaml.safe_load(Path(study.recipe).read_text())["trainer"])
    return {
        name: read_recipe([study.recipe, *train_arguments(study, name), *overrides], trainer).values
        for name in study.cells()
    }


def text(
    plans: dict[str, Plan], what: Path, config: Path | None, overrides: list[str], own: Path | None, explain: bool
) -> str:
    """What a person reads: the page of a recipe, or a line for every cell of a study and their sum."""
    if len(plans) > 1:
        return study_text(plans)
    ((name, plan),) = plans.items()
    title = f"plan of {name}" + (f" with {config}" if config else "")
    lines = [page(plan, title, explain)]
    if plan.machine is None:
        lines += ["", "on the devices of the table:"]
        for device in read_devices(own)[0].values():
            machine = Machine(device, max(1, plan.devices))
            (there,) = plans_of(what, config, machine, overrides).values()
            lines.append(f"  {device.name:<8} {verdict(there)}")
    return "\n".join(lines)


def study_text(plans: dict[str, Plan]) -> str:
    """A line for every cell, and the sum."""
    lines = [f"{name}: {verdict(plan)}" for name, plan in plans.items()]
    hours = [plan.hours for plan in plans.values() if plan.hours is not None]
    money = [plan.dollars for plan in plans.values() if plan.dollars is not None]
    disk = sum(sum(plan.disk.values()) for plan in plans.values())
    largest = max(process.needs for plan in plans.values() for process in plan.processes)
    total = [f"{len(plans)} cells: the largest needs {gib(largest)}, disk at most {gib(disk)}"]
    total += [f"about {clock(sum(hours) * 3600)} h one after another"] if len(hours) == len(plans) else []
    total += [f"{sum(money):,.2f} dollars"] if len(money) == len(plans) else []
    return "\n".join([*lines, ", ".join(total)])
