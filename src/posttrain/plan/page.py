"""What a person reads of a plan: a verdict in one line, a page, and the arithmetic behind it."""

from posttrain.console import clock, plural
from posttrain.plan import hours
from posttrain.plan.devices import CPU
from posttrain.plan.memory import activations
from posttrain.plan.memory.advice import knob_lines
from posttrain.plan.memory.process import OPTIMIZER_BYTES, gib
from posttrain.plan.recipe_plan import Plan, Process


def verdict(plan: Plan) -> str:
    """Whether every kind of process fits, with its margin, and what the work takes."""
    parts = [process_verdict(process, plan) for process in plan.processes]
    parts += [work_line(plan)] if work_line(plan) else []
    return "; ".join(parts)


def process_verdict(process: Process, plan: Plan) -> str:
    """Whether one kind of process fits, and what would."""
    if process.usable is None or plan.machine is None:
        return f"{process.name} needs {gib(process.needs)}"
    device = "this machine" if plan.machine.device.name == CPU else plan.machine.device.name
    where = device if process.count == 1 else f"each of {process.count} × {device}"
    start = "" if process.name == "trainer" else f"{process.name} "
    if not process.fits:
        over = f"{start}does not fit: needs {gib(process.needs)} of {gib(process.usable)} on {where}"
        return over + (f", a micro-batch of {process.largest} rows would" if process.largest else "")
    more = f", up to {process.largest} rows in a micro-batch" if process.largest else ""
    return f"{start}fits: needs {gib(process.needs)} of {gib(process.usable)} on {where}{more}"


def work_line(plan: Plan) -> str:
    """Steps, tokens, hours and money, as far as they are known."""
    parts = [plural(plan.steps, "step")] if plan.steps else []
    parts += [f"{plan.tokens / 1e6:,.1f} million tokens"] if plan.tokens else []
    if plan.work and plan.steps is None:
        parts.append(f"{plan.work.tokens_a_step:,.0f} tokens a step")
        parts += [f"{plan.seconds_a_step:,.2g} s each"] if plan.seconds_a_step else []
    parts += [f"about {plan.hours:,.2g} hours"] if plan.hours else []
    parts += [f"{plan.dollars:,.2f} dollars"] if plan.dollars else []
    return ", ".join(parts)


def page(plan: Plan, title: str, explain: bool = False) -> str:
    """The whole plan as text."""
    lines = [title]
    for process in plan.processes:
        lines += ["", f"{process.name} × {process.count}: {process.detail}", f"  {process_verdict(process, plan)}"]
        lines += [f"  {gib(value):>10}  {name}" for name, value in process.parts.items()]
        lines.append(f"  {gib(process.peak):>10}  peak; {gib(process.needs)} must be free")
    if plan.machine and plan.fits is False and plan.sizes:
        lines += [
            "",
            "what would help most, each alone:",
            *(f"  {line}" for line in knob_lines(plan.sizes, "the config")),
        ]
    lines += ["", "work: " + (work_line(plan) or "unknown")]
    lines += [f"  {clock(seconds):>10}  {name}" for name, seconds in plan.seconds.items()]
    if plan.disk:
        lines += ["", f"disk: {gib(sum(plan.disk.values()))}"]
        lines += [f"  {gib(value):>10}  {name}" for name, value in plan.disk.items()]
    lines += ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []
    if explain:
        lines += ["", *arithmetic(plan)]
    return "\n".join(lines)


def arithmetic(plan: Plan) -> list[str]:
    """The formulas with the numbers of this plan."""
    if plan.sizes is None or plan.work is None:
        return []
    sizes, work = plan.sizes, plan.work
    shape, precision, batch = sizes.shape, sizes.precision, sizes.batch
    layer = activations.layer_bytes(shape, precision, batch)
    optimizer = next((name for name in OPTIMIZER_BYTES if name in sizes.optim), "two moments")
    lines = [
        "arithmetic of one trainer process:",
        f"  parameters {sizes.parameters:,}, trained {sizes.trainable:,}; {sizes.sharding} on {sizes.processes}",
        f"  weights: {sizes.parameters:,} × {sizes.weight_value:g} bytes / {sizes.shards(3)}",
        f"  gradients: {sizes.trainable:,} × {sizes.trained_bytes} bytes / {sizes.shards(2)}",
        f"  optimizer: {optimizer}, {gib(sizes.optimizer)} / {sizes.shards(1)}",
        f"  a layer saves {layer:,.0f} bytes for a token (h {shape.hidden}, q {shape.query}, k {shape.key}, "
        f"f {shape.feed_forward}, activations of {precision.activation} bytes, {batch.attention})",
        f"  saved: {batch.tokens:,} tokens × {shape.layers} layers × "
        + (f"their inputs of {shape.hidden} values" if sizes.checkpointing else f"{layer:,.0f} bytes"),
        f"  loss: {sizes.head} head over {shape.vocabulary:,} words, {gib(sizes.loss)}",
        f"  peak: held {gib(sizes.held)} + the largest of loss and layer; free: both, as freed blocks are kept by size",
    ]
    if plan.machine and plan.machine.device.tflops:
        flops = hours.training_flops(shape, sizes, work.row)
        half = precision.activation < activations.FLOAT32
        peak = plan.machine.device.tflops if half else plan.machine.device.tflops32
        reached = f"{hours.TRAINING_SHARE:g} × {peak:g} TFLOP/s"
        reached = f"{plan.pace.achieved / 1e12:g} TFLOP/s as measured" if plan.pace.achieved else reached
        lines.append(
            f"  time: {work.tokens_a_step:,.0f} tokens a step × {flops / 1e9:,.2f} GFLOP / "
            f"({reached} × {sizes.processes})"
        )
    return lines
