"""Estimate what takes a run's memory, and which settings of that run would save most of it.

Bytes that one decoder layer of a Llama or Qwen2 (RMSNorm, SwiGLU, SDPA) saves for the backward pass, per token: 16h of
norms and residuals in float32, and d (2h + 2q + 2k + 4f) of what the matrix products read; autocast keeps 6h more in
copies. h is the hidden size, q and k are the widths of all query and all key heads, f is the feed-forward size, d the
bytes of an activation. A test holds this against what autograd saves. Korthikanti et al. 2022 (arXiv 2205.05198) count
GPT's layers the same way.
"""

from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30
FLOAT32, HALF = 4, 2
LORA_RANK = 16
# Bytes of optimizer state per trained value, by what the name of `optim` holds; AdamW keeps two float32 moments.
OPTIMIZER_BYTES = {"lion_8bit": 1.0, "8bit": 2.0, "4bit": 1.0, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0}
ADAMW_BYTES = 8.0
KNOBS = 3  # how many are named


@dataclass(frozen=True)
class Sizes:
    """A run's sizes on one process. Counts are of values, not bytes; `*_shards` are processes that share a thing."""

    parameters: int
    trainable: int
    weight_bytes: float  # per value
    optim: str
    batch: int
    length_key: str
    length: int
    layers: int
    hidden: int
    query: int
    key: int
    feed_forward: int
    vocabulary: int
    autocast: bool
    checkpointing: bool
    fused_head: bool  # the loss never holds all logits
    linear: int = 0  # values of matrices that an adapter may sit on: rows plus columns, over all of them
    adapter: bool = False
    weight_shards: int = 1
    gradient_shards: int = 1
    optimizer_shards: int = 1

    @property
    def weights(self) -> float:
        copies = HALF if self.autocast and self.weight_bytes > HALF else 0  # autocast casts each matrix and keeps it
        return self.parameters * (self.weight_bytes + copies) / self.weight_shards

    @property
    def gradients(self) -> float:
        return self.trainable * self.trained_bytes / self.gradient_shards

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained value; an adapter is float32 over whatever base."""
        return HALF if self.weight_bytes == HALF and not self.adapter else FLOAT32

    @property
    def optimizer(self) -> float:
        names = [name for name in OPTIMIZER_BYTES if name in self.optim]
        per_value = OPTIMIZER_BYTES[names[0]] if names else ADAMW_BYTES * self.trained_bytes / FLOAT32
        return self.trainable * per_value / self.optimizer_shards

    @property
    def activations(self) -> float:
        d = HALF if self.autocast or self.weight_bytes == HALF else FLOAT32
        copies = 6 * self.hidden if self.autocast else 0
        inside = d * (2 * self.hidden + 2 * self.query + 2 * self.key + 4 * self.feed_forward)
        layer = 16 * self.hidden + copies + inside
        # With checkpointing a layer keeps its input alone, and one at a time is computed again.
        layers = self.layers * FLOAT32 * self.hidden + layer if self.checkpointing else self.layers * layer
        logits = 0 if self.fused_head else self.vocabulary * (d + 2 * FLOAT32)  # and their float32 copy and gradient
        return self.batch * self.length * (layers + logits)

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Knob:
    """A setting, and the bytes that it would save alone."""

    setting: str
    saves: float


def knobs(sizes: Sizes, config: str, accumulation: int) -> list[Knob]:
    """Every setting that would save memory in this run, the largest saving first. `config` is the accelerate config."""
    changes: list[tuple[str, Sizes]] = []
    if not sizes.checkpointing:
        checkpointing = replace(sizes, checkpointing=True)
        changes.append(
            (f"{config}: dynamo_config.gradient_checkpointing: true (computes forward twice)", checkpointing)
        )
    if sizes.batch > 1:
        smaller = max(1, sizes.batch // 2)
        steps = -(-sizes.batch * accumulation // smaller)
        setting = f"per_device_train_batch_size: {smaller} and gradient_accumulation_steps: {steps} (the same gradient)"
        changes.append((setting, replace(sizes, batch=smaller)))
    half = sizes.length // 2
    changes.append((f"{sizes.length_key}: {half} (longer rows are left out)", replace(sizes, length=half)))
    if not sizes.autocast and sizes.weight_bytes == FLOAT32:
        changes.append((f"{config}: mixed_precision: bf16", replace(sizes, autocast=True)))
    if not sizes.adapter:
        lora = replace(sizes, trainable=LORA_RANK * sizes.linear, adapter=True)
        changes.append((f"use_peft: true with lora_r: {LORA_RANK} and lora_target_modules: [all-linear]", lora))
        changes.append(("optim: adamw_bnb_8bit", replace(sizes, optim="adamw_bnb_8bit")))
    elif sizes.weight_bytes > 1:
        changes.append(("load_in_4bit: true (QLoRA)", replace(sizes, weight_bytes=0.5)))
    found = [Knob(setting, sizes.total - changed.total) for setting, changed in changes]
    return sorted((knob for knob in found if knob.saves > 0), key=lambda knob: -knob.saves)


def advice(sizes: Sizes, config: str, accumulation: int, device_bytes: int | None) -> str:
    """The message: where memory goes by estimate, and the knobs that would help most."""
    parts = {
        "weights": sizes.weights, "gradients": sizes.gradients, "optimizer state": sizes.optimizer,
        f"activations of {sizes.batch} × up to {sizes.length} tokens": sizes.activations,
    }  # fmt: skip
    device = "" if device_bytes is None else f" on a device of {gib(device_bytes)}"
    lines = [
        f"CUDA is out of memory{device}. By estimate this run needs {gib(sizes.total)}: "
        + ", ".join(f"{name} {gib(value)}" for name, value in parts.items())
        + ". What would help most, each alone:"
    ]
    lines += [f"saves {gib(knob.saves):>9}  {knob.setting}" for knob in knobs(sizes, config, accumulation)[:KNOBS]]
    return "\n       ".join(lines)


def gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:.0f} MiB"


def bytes_per_value(parameter: Any) -> float:
    return parameter.element_size() / (2 if type(parameter).__name__ == "Params4bit" else 1)


def sizes_of(trainer: Any) -> Sizes:
    """The sizes of a run of one of TRL's trainers."""
    from posttrain.models.trainable import size

    model = trainer.accelerator.unwrap_model(trainer.model)
    config, arguments, state = model.config.get_text_config(), trainer.args, trainer.accelerator.state
    parameters = list(model.parameters())
    key = "max_length" if hasattr(arguments, "max_length") else "max_completion_length"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stage = state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else 3 * trainer.is_fsdp_enabled
    spread = [state.num_processes if stage >= needed else 1 for needed in (3, 2, 1)]
    count = sum(map(size, parameters))
    return Sizes(
        parameters=count,
        trainable=sum(size(p) for p in parameters if p.requires_grad),
        weight_bytes=sum(size(p) * bytes_per_value(p) for p in parameters) / count,
        optim=str(getattr(arguments.optim, "value", arguments.optim)),
        batch=arguments.per_device_train_batch_size,
        length_key=key,
        length=getattr(arguments, key, None) or 0,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=config.num_attention_heads * head,
        key=config.num_key_value_heads * head,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        autocast=trainer.accelerator.mixed_precision in ("bf16", "fp16"),
        checkpointing=bool(getattr(model, "is_activation_checkpointing", False)),
        fused_head=getattr(arguments, "loss_type", None) == "nll",
        linear=sum(sum(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name),
        adapter=hasattr(model, "peft_config"),
        weight_shards=spread[0],
        gradient_shards=spread[1],
        optimizer_shards=spread[2],
    )  # fmt: skip
