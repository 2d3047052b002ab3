"""The plan of a recipe on a machine: its processes with their memory, steps, seconds and money, and its disk."""

from dataclasses import asdict, dataclass, field
from typing import Any

from posttrain.plan import disk, hours
from posttrain.plan.devices import Machine
from posttrain.plan.memory.activations import HALF
from posttrain.plan.memory.generation import CONTEXT, SERVER_SHARE, Generation, grpo_generation, slots, vllm
from posttrain.plan.memory.process import GIB, Sizes, largest_batch
from posttrain.plan.memory.training_sizes import DTYPES, Topology, training_sizes
from posttrain.plan.shapes import Shape, read_shape
from posttrain.recipe.methods import find_method


@dataclass(frozen=True)
class Process:
    """One kind of process: how many run, bytes by part, its peak, what must be free, and what its device has."""

    name: str
    count: int
    parts: dict[str, float]
    peak: float
    needs: float
    usable: float | None
    batch: int | None = None  # rows of a micro-batch now
    largest: int | None = None  # rows that would fit
    detail: str = ""

    @property
    def fits(self) -> bool | None:
        return None if self.usable is None else self.needs <= self.usable

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"fits": self.fits}


@dataclass(frozen=True)
class Plan:
    """What a recipe will take. `seconds` are by phase; what nothing is known of is left out."""

    trainer: str
    model: str
    machine: Machine | None
    processes: list[Process]
    steps: int | None = None
    tokens: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: Sizes | None = None
    work: hours.Work | None = None
    pace: hours.Pace = hours.UNMEASURED  # what of the time rests on earlier runs

    @property
    def devices(self) -> int:
        return sum(process.count for process in self.processes if process.name not in ("evaluation", "sampling"))

    @property
    def fits(self) -> bool | None:
        verdicts = [process.fits for process in self.processes]
        return None if None in verdicts or not verdicts else all(verdicts)

    @property
    def hours(self) -> float | None:
        return sum(self.seconds.values()) / 3600 if self.seconds else None

    @property
    def seconds_a_step(self) -> float | None:
        """Seconds of the training of one step."""
        if self.sizes is None or self.work is None or self.machine is None:
            return None
        return hours.training_seconds(self.work, self.sizes, self.machine, self.pace.achieved)

    @property
    def dollars(self) -> float | None:
        price = self.machine.device.dollars if self.machine else None
        return None if price is None or self.hours is None else self.hours * price * max(1, self.devices)

    def as_record(self) -> dict[str, Any]:
        """Plain values, for --json and run.json."""
        machine = None if self.machine is None else asdict(self.machine)
        return {
            "trainer": self.trainer, "model": self.model, "machine": machine, "fits": self.fits,
            "processes": [process.as_record() for process in self.processes], "steps": self.steps,
            "tokens": self.tokens, "pace": asdict(self.pace), "alike": alike(self),
            "seconds": self.seconds, "hours": self.hours, "dollars": self.dollars,
            "disk": self.disk, "notes": self.notes,
        }  # fmt: skip


def make_plan(
    values: dict[str, Any], topology: Topology, machine: Machine | None, pace: hours.Pace = hours.UNMEASURED
) -> Plan:
    """The plan of a recipe's values; raises ShapeError where the model's shape cannot be known.

    `machine` None plans without a verdict. `pace` is what earlier runs took there.
    """
    trains = find_method(values["trainer"]).library
    return plan_training(values, topology, machine, pace) if trains else plan_answers(values, machine)


def plan_training(values: dict[str, Any], topology: Topology, machine: Machine | None, pace: hours.Pace) -> Plan:
    """The plan of a recipe that trains."""
    name = str(values["model_name_or_path"])
    shape = read_shape(name, values.get("model_revision"))
    data = pace.of(hours.read_data(values))
    sizes = training_sizes(values, topology, shape, data.longest)
    usable = None if machine is None else machine.device.usable / (topology.processes if topology.use_cpu else 1)
    work = hours.work_of(values, sizes, data)
    generating = _generation(values, shape, sizes, usable)
    processes = [_trainer(sizes, usable, *generating)]
    mode, generation = generating
    if mode == "server":
        split = int(values.get("vllm_tensor_parallel_size", 1))
        processes.append(_answering("vLLM server", split, generation, usable))
    if values["trainer"] == "expert_iteration":
        rows, budget = int(values.get("batch_size", 64)), int(values["max_new_tokens"])
        processes.append(_answering("sampling", 1, slots(shape, rows, CONTEXT + budget), usable))
    seconds = _seconds(values, shape, sizes, work, machine, mode, generation, pace) if machine else {}
    return Plan(
        trainer=values["trainer"],
        model=name,
        machine=machine,
        processes=processes,
        steps=work.steps,
        tokens=work.tokens,
        seconds=seconds,
        disk=disk.disk_parts(values, sizes, work.steps),
        notes=_notes(values, topology, machine, sizes, work, processes),
        sizes=sizes,
        work=work,
        pace=pace,
    )


def alike(plan: Plan) -> dict[str, Any]:
    """What an earlier run must share to speak for this one's rate (the first three) and for its memory (all)."""
    if plan.sizes is None:
        return {}
    sizes, work = plan.sizes, plan.work
    return {
        "shape": asdict(sizes.shape),
        "device": plan.machine.device.name if plan.machine else None,
        "precision": asdict(sizes.precision),
        "flops": hours.training_flops(sizes.shape, sizes, work.row) if work else None,
        "rows_a_step": work.rows_a_step if work else None,
        "memory": {
            "trainer": plan.trainer, "trainable": sizes.trainable, "checkpointing": sizes.checkpointing,
            "sharding": sizes.sharding, "processes": sizes.processes, "optim": sizes.optim,
            "attention": sizes.batch.attention, "rows": sizes.batch.rows, "length": sizes.batch.length,
        },
    }  # fmt: skip


def _generation(
    values: dict[str, Any], shape: Shape, sizes: Sizes, usable: float | None
) -> tuple[str | None, Generation | None]:
    if values["trainer"] != "grpo":
        return None, None
    device = 80 * GIB if usable is None else usable
    return grpo_generation(values, shape, device, sizes.precision.activation)


def _trainer(sizes: Sizes, usable: float | None, mode: str | None, generation: Generation | None) -> Process:
    parts, needs, peak = dict(sizes.parts), sizes.total, sizes.peak
    beside = generation.total if mode == "colocate" and generation else 0.0
    if beside:
        parts["vLLM beside it"] = beside
    while_generating = 0.0
    if mode == "slots" and generation:
        parts["keys and values of completions"] = generation.parts["keys and values"]
        while_generating = sizes.held + generation.total
    largest = None if usable is None else largest_batch(sizes, usable - beside)
    return Process(
        "trainer", sizes.processes, parts, max(peak, while_generating) + beside, max(needs, while_generating) + beside,
        usable, sizes.batch.rows, largest,
        f"{sizes.batch.rows} rows of up to {sizes.batch.length} tokens"
    )  # fmt: skip


def _answering(name: str, count: int, generation: Generation, usable: float | None) -> Process:
    detail = f"{generation.rows:,.0f} completions of full length at once"
    needs = generation.total
    if generation.reserved is None and "CUDA graphs and work" in generation.parts:
        detail = "no room for keys and values"
    return Process(name, count, generation.parts, needs, needs, usable, detail=detail)


def _seconds(
    values: dict[str, Any], shape: Shape, sizes: Sizes, work: hours.Work, machine: Machine, mode: str | None,
    generation: Generation | None, pace: hours.Pace,
) -> dict[str, float]:  # fmt: skip
    rounds = int(values.get("num_rounds", 1))
    steps, seconds = (work.steps or 0) * rounds, {}
    training = hours.training_seconds(work, sizes, machine, pace.achieved)
    if steps and pace.phases:
        seconds = {phase: steps * work.rows_a_step * of_a_row for phase, of_a_row in pace.phases.items()}
    elif steps and training is not None:
        seconds["training"] = steps * training
    if steps and pace.stop is not None:
        seconds["evaluation and saving"] = hours.stops(values, steps, work.epochs) * pace.stop
    if steps and generation is not None and not pace.phases:
        context, rows = CONTEXT + int(values["max_completion_length"]), generation.rows
        devices = sizes.processes if mode != "server" else 1
        answering = hours.decoding_seconds(shape, work.generated_a_step, rows, context, machine, devices)
        if answering is not None:
            beside = seconds.get("training", 0.0) if values.get("generation_ahead") else 0.0
            seconds["generation"] = max(0.0, steps * answering - beside)
    if values["trainer"] == "expert_iteration":
        answers = int(values.get("num_questions") or 0) * int(values["num_candidates"]) * rounds
        tokens, rows = answers * int(values["max_new_tokens"]), int(values.get("batch_size", 64))
        answering = hours.decoding_seconds(shape, tokens, rows, CONTEXT + int(values["max_new_tokens"]), machine)
        if answers and answering is not None:
            seconds["generation"] = answering
    return seconds


def _notes(
    values: dict[str, Any], topology: Topology, machine: Machine | None, sizes: Sizes, work: hours.Work,
    processes: list[Process],
) -> list[str]:  # fmt: skip
    notes = []
    if work.steps is None:
        notes.append(f"steps unknown: {values['dataset_name']} is not prepared, and max_steps is not set")
    elif work.at_most:
        notes.append("tokens are at most: every row is taken at its longest")
    needed = sum(process.count for process in processes if process.name in ("trainer", "vLLM server"))
    if machine and needed > machine.count and not topology.use_cpu:
        notes.append(
            f"{needed} GPUs are needed ({topology.processes} to train), the machine has {machine.count}: lower "
            f"num_processes of the accelerate config"
        )
    if sizes.batch.length > sizes.shape.positions:
        notes.append(
            f"rows of {sizes.batch.length} tokens are longer than the model's {sizes.shape.positions} positions"
        )
    if sizes.sharding == "fsdp" and values.get("use_peft"):
        notes.append("an adapter under FSDP gathers the frozen base too")
    return notes


def plan_answers(values: dict[str, Any], machine: Machine | None) -> Plan:
    """The plan of an evaluation, or of sampling: in slots of this process, or by a vLLM server."""
    name = str(values.get("model") or values["model_name_or_path"])
    shape, usable = read_shape(name), machine.device.usable if machine else None
    budget, rows = int(values["max_new_tokens"]), int(values.get("batch_size", 64))
    per_value = DTYPES.get(values.get("dtype") or "auto", HALF)
    task = "evaluation" if values["trainer"] == "eval" else "sampling"
    if values.get("server"):
        task, generation = "vLLM server", vllm(shape, usable or 80 * GIB, SERVER_SHARE, CONTEXT + budget)
    else:
        generation = slots(shape, rows, CONTEXT + budget, per_value)
    answers = int(values.get("num_questions") or 0) * int(values.get("num_candidates") or 0)
    seconds = {}
    if machine and answers:
        spent = hours.decoding_seconds(shape, answers * budget, generation.rows, CONTEXT + budget, machine)
        seconds = {} if spent is None else {"generation": spent}
    cached = {"model in the hub's cache": disk.hub_bytes(shape)} if disk.is_on_the_hub(name) else {}
    notes = [f"a prompt is taken for {CONTEXT} tokens, an answer for {budget}"]
    return Plan(
        values["trainer"], name, machine, [_answering(task, 1, generation, usable)], None, None, seconds, cached, notes
    )
