"""What a person reads where memory runs out: where it goes by estimate, and the settings that would save most of it."""

from dataclasses import dataclass, replace

from posttrain.plan.memory.activations import FLOAT32
from posttrain.plan.memory.process import Sizes, gib

LORA_RANK = 16
KNOBS = 3  # how many are named


@dataclass(frozen=True)
class Knob:
    """A setting, and the bytes that it would save alone."""

    setting: str
    saves: float


def knobs(sizes: Sizes, config: str) -> list[Knob]:
    """Every setting that would save memory in this run, the largest saving first. `config` is the accelerate config."""
    changes: list[tuple[str, Sizes]] = []
    precision, batch = sizes.precision, sizes.batch
    if not sizes.checkpointing:
        checkpointing = replace(sizes, checkpointing=True)
        changes.append(
            (f"{config}: dynamo_config.gradient_checkpointing: true (computes forward twice)", checkpointing)
        )
    if batch.rows > 1:
        smaller = max(1, batch.rows // 2)
        steps = -(-batch.rows * sizes.accumulation // smaller)
        setting = f"per_device_train_batch_size: {smaller} and gradient_accumulation_steps: {steps} (the same gradient)"
        changes.append((setting, replace(sizes, batch=replace(batch, rows=smaller), accumulation=steps)))
    half = batch.length // 2
    longer = f"{sizes.length_key}: {half} (longer rows are left out)"
    changes.append((longer, replace(sizes, batch=replace(batch, length=half))))
    if not precision.autocast and precision.weight == FLOAT32:
        changes.append(
            (f"{config}: mixed_precision: bf16", replace(sizes, precision=replace(precision, autocast=True)))
        )
    if not sizes.adapter:
        lora = replace(sizes, trainable=LORA_RANK * sizes.shape.adaptable, adapter=True)
        changes.append((f"use_peft: true with lora_r: {LORA_RANK} and lora_target_modules: [all-linear]", lora))
        changes.append(("optim: adamw_bnb_8bit", replace(sizes, optim="adamw_bnb_8bit")))
    elif precision.weight > 1:
        changes.append(("load_in_4bit: true (QLoRA)", replace(sizes, precision=replace(precision, weight=0.5))))
    found = [Knob(setting, sizes.total - changed.total) for setting, changed in changes]
    return sorted((knob for knob in found if knob.saves > 0), key=lambda knob: -knob.saves)


def knob_lines(sizes: Sizes, config: str) -> list[str]:
    return [f"saves {gib(knob.saves):>9}  {knob.setting}" for knob in knobs(sizes, config)[:KNOBS]]


def advice(sizes: Sizes, config: str, device_bytes: int | None) -> str:
    """The message: where memory goes by estimate, and the knobs that would help most."""
    parts = {
        "weights": sizes.weights + sizes.casts, "gradients": sizes.gradients, "optimizer state": sizes.optimizer,
        f"activations of {sizes.batch.rows} × up to {sizes.batch.length} tokens": sizes.activations,
    }  # fmt: skip
    device = "" if device_bytes is None else f" on a device of {gib(device_bytes)}"
    lines = [
        f"CUDA is out of memory{device}. By estimate this run needs {gib(sizes.total)}: "
        + ", ".join(f"{name} {gib(value)}" for name, value in parts.items())
        + ". What would help most, each alone:"
    ]
    return "\n       ".join(lines + knob_lines(sizes, config))
