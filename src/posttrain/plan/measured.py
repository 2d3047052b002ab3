"""What earlier runs took beside what was planned for them, and what that says of the next one."""

import json
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from posttrain import lineage
from posttrain.console import clock
from posttrain.errors import PosttrainError
from posttrain.plan.devices import Machine
from posttrain.plan.hours import Pace, stops
from posttrain.plan.memory.process import gib
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.recipe_plan import Plan, alike, make_plan
from posttrain.recipe.methods import find_method

OUTPUTS = Path("outputs")
MEMORY = "memory"  # how a session ended that ran out of it
SAMPLING = (  # what of a GRPO recipe decides the seconds of a completion
    "trainer", "max_completion_length", "num_generations", "num_iterations", "use_vllm", "vllm_mode",
    "generation_ahead", "dynamic_sampling", "question_sampling",
)  # fmt: skip
STOPS = ("trainer", "eval_", "guard_", "save_", "sample_generations")  # what decides how long a stop takes


class Window(NamedTuple):
    """A logged stretch of training: its steps, its tokens, its seconds, and the line of metrics.jsonl."""

    steps: int
    tokens: int
    seconds: float
    line: dict[str, Any]


@dataclass(frozen=True)
class Earlier:
    """A finished run: its directory and its record."""

    directory: Path
    record: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        return dict(self.record["plan"])

    @property
    def result(self) -> dict[str, Any]:
        return dict(self.record["result"])

    def like(self, plan: Plan, *keys: str) -> bool:
        """Whether the run had a plan's shape, device and precision, and what else of `alike` is named."""
        ours, theirs = alike(plan), self.plan["alike"]
        return all(theirs.get(key) == ours.get(key) for key in ("shape", "device", "precision", *keys))

    def same(self, identity: dict[str, Any], *keys: str) -> bool:
        """Whether the run's recipe had these fields as `identity` has them, or lacked them as well."""
        return all(self.record["identity"].get(key) == identity.get(key) for key in keys)

    def achieved(self, plan: Plan) -> float | None:
        """Operations a second of one process, by the tokens it trained on; None where the run measured no rate."""
        flops = alike(plan)["flops"] if self.like(plan, "memory") else self.plan["alike"].get("flops")
        settled = self.windows()[1:]  # the first one has what is done once
        seconds = sum(window.seconds for window in settled)
        rate = sum(window.tokens for window in settled) / seconds if seconds else self.result.get("tokens_per_second")
        return rate * flops / self.plan["alike"]["memory"]["processes"] if rate and flops else None

    def windows(self) -> list[Window]:
        """The logged stretches of all sessions; none where the metrics are gone or of another layout."""
        found, before = [], {"step": 0, "tokens_seen": 0}
        try:
            lines = [json.loads(line) for line in (self.directory / lineage.METRICS_FILE).read_text().splitlines()]
            for line in (line for line in lines if "loss" in line):
                tokens = line["tokens_seen"] - before["tokens_seen"]
                found.append(Window(line["step"] - before["step"], tokens, tokens / line["tokens_per_second"], line))
                before = line
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            return []
        return found


def earlier_runs(root: Path = OUTPUTS) -> list[Earlier]:
    """Finished runs below a directory that keep a plan, in the order in which they ended.

    What is damaged is left to the commands that need it.
    """
    found = []
    for file in (*root.glob("*/run.json"), *root.glob("*/*/run.json")):
        try:
            record = lineage.read_record(file.parent) or {}
        except PosttrainError:
            continue
        plan, result = record.get("plan"), record.get("result")
        if isinstance(plan, dict) and plan.get("alike") and isinstance(result, dict) and record.get("identity"):
            found.append(Earlier(file.parent, record))
    return sorted(found, key=lambda run: str(run.record.get("finished")))


def plan_with(values: dict[str, Any], topology: Topology, machine: Machine | None, runs: list[Earlier]) -> Plan:
    """The plan of a recipe with what earlier runs took of memory and time, where there were any like it."""
    row = tokens_of_a_row(values, runs)
    plan = make_plan(values, topology, machine, Pace(row=row))
    if plan.sizes is None or machine is None:
        return plan
    phases, stop = {}, None
    if plan.trainer != "expert_iteration":  # its record is of no single training
        phases, stop = phases_before(plan, values, runs), stop_before(plan, values, runs)
    pace = Pace(achieved_before(plan, runs), row, phases, stop)
    return with_memory_of(make_plan(values, topology, machine, pace), runs)


def tokens_of_a_row(values: dict[str, Any], runs: list[Earlier]) -> float | None:
    """Tokens of a row of these data by the last run of this kind on them; None where there was none."""
    try:
        manifest = json.loads((Path(str(values.get("dataset_name"))) / "manifest.json").read_text())
        ours = {**values, "dataset_files": lineage.digest(manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for run in reversed(runs):
        used = run.record.get("inputs", {}).get("dataset", {}).get("used", {}).get("train")
        if used and run.result.get("epochs") and run.same(ours, "trainer", "prompt", "dataset_files"):
            rows = used * run.result["epochs"] * find_method(values["trainer"]).rows
            return float(run.result["tokens_seen"] / rows)
    return None


def achieved_before(plan: Plan, runs: list[Earlier]) -> float | None:
    """The median of what runs of this shape, device and precision reached, of those with all settings if there are any.

    GRPO's seconds are not those of training.
    """
    if plan.trainer == "grpo":
        return None
    like = [run for run in runs if run.like(plan) and run.plan.get("trainer") != "grpo"]
    alike_in_all = [run for run in like if run.like(plan, "memory")]
    rates = [rate for run in alike_in_all or like if (rate := run.achieved(plan))]
    return statistics.median(rates) if rates else None


def phases_before(plan: Plan, values: dict[str, Any], runs: list[Earlier]) -> dict[str, float]:
    """Seconds of GRPO's phases for each row of a step, by the last run that sampled and trained alike."""
    for run in reversed(runs):
        if plan.trainer == "grpo" and run.like(plan, "memory") and run.same(values, *SAMPLING):
            windows, seconds = run.windows(), Counter[str]()
            rows = sum(window.steps for window in windows) * run.plan["alike"].get("rows_a_step", 0)
            for window in windows:
                for name in (name for name in window.line if name.startswith("seconds/")):
                    phase = "generation" if name == "seconds/generation" else "training"
                    seconds[phase] += window.steps * window.line[name]
            if rows and seconds:
                return {phase: took / rows for phase, took in seconds.items()}
    return {}


def stop_before(plan: Plan, values: dict[str, Any], runs: list[Earlier]) -> float | None:
    """Seconds of a stop for evaluation, guard or saving, by the last uninterrupted run of these settings."""
    fields = [key for key in values if key.startswith(STOPS)]
    for run in reversed(runs):
        alone = len(run.record.get("sessions", ())) == 1 and run.like(plan, "memory") and run.same(values, *fields)
        if alone and (windows := run.windows()):
            result = run.result
            beside = result["wall_seconds"] - sum(window.seconds for window in windows)
            return max(0.0, beside) / stops(run.record["identity"], result["steps"], result["epochs"])
    return None


def with_memory_of(plan: Plan, runs: list[Earlier]) -> Plan:
    """The plan with what a run of the same settings took, where there was one; more than planned is planned now."""
    for run in reversed(runs):
        if run.like(plan, "memory"):
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
