"""The plan of a run that starts now: a line for its header, and a refusal where it cannot fit."""

from typing import Any

import yaml

from posttrain.console import is_main_process, warn
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.plan import measured
from posttrain.plan.devices import Machine, named_like, this_processor
from posttrain.plan.hours import read_data
from posttrain.plan.memory.advice import knob_lines
from posttrain.plan.memory.process import gib
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.page import verdict
from posttrain.plan.recipe_plan import Plan
from posttrain.plan.shapes import ShapeError


def topology_in_force(hardware: Hardware) -> Topology:
    """What is in force of the accelerate config, with the processes that run."""
    config = yaml.safe_load(hardware.text) if hardware.text else {}
    in_force = {
        "num_processes": hardware.num_processes,
        "mixed_precision": hardware.mixed_precision,
        "use_cpu": hardware.use_cpu or not _has_gpu(),
        "dynamo_config": {
            "gradient_checkpointing": hardware.gradient_checkpointing,
            "attn_implementation": hardware.attn_implementation,
        },
    }
    return Topology.of_config({**config, **in_force})


def this_machine(topology: Topology) -> Machine:
    """What this process computes on, as often as processes run; a CPU is one for all of them."""
    if topology.use_cpu:
        return Machine(this_processor(), 1)
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Machine(named_like(properties.name, properties.total_memory), topology.processes)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def plan_start(values: dict[str, Any], hardware: Hardware, mode: str, where: str) -> Plan | str:
    """The plan of the run that starts, or why it has none.

    Raises PosttrainError in mode `refuse` where it cannot fit whatever its rows are, and only then: rows may be shorter
    than they are allowed to be. What may not fit is warned of, and so is with mode `warn` what cannot.
    """
    topology = topology_in_force(hardware)
    try:
        plan = measured.plan_with(values, topology, this_machine(topology), measured.earlier_runs())
    except ShapeError as unknown:
        return str(unknown)
    trainer = plan.processes[0]
    if trainer.usable is None or plan.sizes is None or trainer.fits or not is_main_process():
        return plan
    certain = plan.sizes.least(certain_rows=bool(values.get("packing")) or read_data(values).longest is not None)
    lines = "\n       ".join(knob_lines(plan.sizes, hardware.path or "the accelerate config"))
    if certain > trainer.usable and mode == "refuse":
        raise PosttrainError(
            f"{where}: does not fit: at least {gib(certain)} are needed, {gib(trainer.usable)} are there; plan: warn "
            f"starts it all the same. What would help most, each alone:\n       {lines}"
        )
    warn(f"{where}: {verdict(plan)}. What would help most, each alone:\n       {lines}")
    return plan
