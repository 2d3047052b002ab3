"""What earlier runs took beside what was planned for them, and what that says of the next one."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain import lineage
from posttrain.console import clock
from posttrain.errors import PosttrainError
from posttrain.plan.memory.process import gib
from posttrain.plan.recipe_plan import Plan, alike

OUTPUTS = Path("outputs")
MEMORY = "memory"  # how a session ended that ran out of it


@dataclass(frozen=True)
class Earlier:
    """A finished run: its directory, its record's plan and its result."""

    directory: Path
    plan: dict[str, Any]
    result: dict[str, Any]

    @property
    def achieved(self) -> float | None:
        """Operations a second of one process, by the tokens it trained on; None where the run measured no rate."""
        rate, flops = self.result.get("tokens_per_second"), self.plan["alike"].get("flops")
        return rate * flops / self.plan["alike"]["memory"]["processes"] if rate and flops else None


def earlier_runs(root: Path = OUTPUTS) -> list[Earlier]:
    """Finished runs below a directory that keep a plan; what is damaged is left to the commands that need it."""
    found = []
    for file in sorted([*root.glob("*/run.json"), *root.glob("*/*/run.json")]):
        try:
            record = lineage.read_record(file.parent) or {}
        except PosttrainError:
            continue
        plan, result = record.get("plan"), record.get("result")
        if isinstance(plan, dict) and plan.get("alike") and isinstance(result, dict):
            found.append(Earlier(file.parent, plan, result))
    return found


def achieved_before(plan: Plan, runs: list[Earlier]) -> float | None:
    """The median of what runs of this shape, device and precision reached; GRPO's seconds are not those of training."""
    if plan.trainer == "grpo":
        return None
    ours = alike(plan)
    like = [
        run.achieved
        for run in runs
        if all(run.plan["alike"].get(key) == ours.get(key) for key in ("shape", "device", "precision"))
        and run.plan.get("trainer") != "grpo"
    ]
    rates = [rate for rate in like if rate]
    return statistics.median(rates) if rates else None


def with_memory_of(plan: Plan, runs: list[Earlier]) -> Plan:
    """The plan with what a run of the same settings took, where there was one; more than planned is planned now."""
    ours = alike(plan)
    for run in reversed(runs):
        if all(run.plan["alike"].get(key) == ours.get(key) for key in ("shape", "device", "precision", "memory")):
            planned, took = trainer_of(run.plan)["peak"], run.result["peak_memory_bytes"]
            note = f"{run.directory} with these settings: planned {gib(planned)}, took {gib(took)}"
            first, *others = plan.processes
            first = replace(first, needs=first.needs + max(0.0, took - planned), peak=max(first.peak, took))
            return replace(plan, notes=[*plan.notes, note], processes=[first, *others])
    return plan


def trainer_of(plan: dict[str, Any]) -> dict[str, Any]:
    return next(process for process in plan["processes"] if process["name"] == "trainer")


def beside(plan: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Lines that hold what a run took against its plan."""
    lines = [f"memory: planned {gib(trainer_of(plan)['peak'])}, took {gib(result['peak_memory_bytes'])}"]
    if seconds := plan.get("seconds"):
        lines.append(f"time: planned {clock(sum(seconds.values()))}, took {clock(result['wall_seconds'])}")
    return lines


def more_than_planned(plan: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether a run took over a tenth more memory than was planned for it."""
    return result["peak_memory_bytes"] > 1.1 * trainer_of(plan)["peak"]


def explain(directory: Path) -> str:
    """Why a run ended for memory or took its time, by its record; raises PosttrainError where there is none."""
    record = lineage.read_record(directory)
    if record is None:
        raise PosttrainError(f"{directory}: has no {lineage.RUN_FILE}; expected the directory of a run, or a recipe")
    plan, result = record.get("plan"), record.get("result")
    if not isinstance(plan, dict):
        raise PosttrainError(
            f"{directory}: its record keeps no plan; the run is older than plans, or its model has none"
        )
    if result:
        lines = beside(plan, result)
        if result.get("tokens_per_second"):
            lines.append(f"rate: {result['tokens_per_second']:,.0f} tokens a second")
        return "\n".join([f"{directory}: finished", *(f"  {line}" for line in lines)])
    trainer, ended = trainer_of(plan), record["sessions"][-1].get("ended") or {}
    device = (plan.get("machine") or {}).get("device") or {}
    why = "not finished; its record does not say why it ended"
    if ended.get("reason") == MEMORY:
        why = "ended as memory ran out"
    elif ended.get("signal"):
        why = f"left upon {ended['signal']} at step {ended.get('step')}; the same command goes on"
    head = f"{directory}: {why}"
    had = "" if trainer["usable"] is None else f" of {gib(trainer['usable'])}"
    lines = [
        f"planned peak {gib(trainer['peak'])}, {gib(trainer['needs'])}{had} had to be free on {device.get('name')}"
    ]
    parts = sorted(trainer["parts"].items(), key=lambda part: -part[1])
    lines += [f"{gib(value):>10}  {name}" for name, value in parts]
    if trainer["largest"]:
        lines.append(f"a micro-batch of {trainer['largest']} rows would fit by the plan, it had {trainer['batch']}")
    return "\n".join([head, *(f"  {line}" for line in lines)])
