"""Memory of one training process by parts, and its peak, from sizes alone.

What a process holds all the time, what a micro-batch saves for its backward pass, and what the loss or one layer needs
for a moment. The peak is the largest moment of a step. What must be free is more: PyTorch keeps freed blocks for later,
and a block that the loss gave back has another size than those that a layer asks for, so both moments count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from posttrain.plan.memory.activations import (
    FLOAT32,
    HALF,
    Batch,
    Precision,
    fused_head,
    layer_bytes,
    layer_work,
    mask_bytes,
    pieces_head,
    whole_logits,
)
from posttrain.plan.shapes import Shape

GIB = 2**30
# Bytes of optimizer state per trained value, by what the name of `optim` holds; AdamW keeps two float32 moments.
OPTIMIZER_BYTES = {"lion_8bit": 1.0, "8bit": 2.0, "4bit": 1.0, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0}
ADAMW_BYTES = 8.0
KEPT = 0.6  # of saved activations and loss, that a CPU's allocator keeps again in holes: the median of 0.2 to 1.3
SHARDS = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}  # optimizer, gradients, weights
DEEPSPEED = ("zero1", "zero2", "zero3")
BUCKET = 500_000_000  # values that DeepSpeed reduces or gathers at once
# What computes the loss: TRL's fused head, by Triton's kernels or torch, distillation's pieces, all logits, or nothing
FUSED, TILED, PIECES, WHOLE, NO_HEAD = "fused", "tiled", "pieces", "whole", "none"


@dataclass(frozen=True)
class Sizes:
    """A run's sizes on one process. Counts are of values, not bytes."""

    shape: Shape
    parameters: int
    trainable: int
    precision: Precision
    batch: Batch
    optim: str = "adamw_torch_fused"
    checkpointing: bool = False
    head: str = FUSED
    accumulation: int = 1
    adapter: bool = False
    sharding: str = "none"
    processes: int = 1
    offloaded: bool = False  # the optimizer's state is in the host's memory
    frozen_copies: float = 0.0  # bytes of a reference model or a teacher
    head_bytes: float = 0.0  # more bytes of the loss for a token: a teacher's logits
    runtime: float = 0.0  # bytes of the interpreter and its libraries, on a CPU
    length_key: str = "max_length"

    def shards(self, level: int) -> int:
        return self.processes if SHARDS[self.sharding] >= level else 1

    @property
    def deepspeed_half(self) -> bool:
        """DeepSpeed keeps weights and gradients in half precision, and float32 masters beside the moments."""
        return self.sharding in DEEPSPEED and self.precision.autocast

    @property
    def weight_value(self) -> float:
        """Bytes of a weight as the process holds it."""
        return min(HALF, self.precision.weight) if self.deepspeed_half else self.precision.weight

    @property
    def weights(self) -> float:
        return self.parameters * self.weight_value / self.shards(3)

    @property
    def casts(self) -> float:
        """Half copies of float32 matrices that autocast makes and keeps, or one layer's where layers are recomputed."""
        if not self.precision.autocast or self.precision.weight <= HALF or self.deepspeed_half:
            return 0.0
        if self.sharding == "fsdp":
            return 0.0  # gathered ones are half
        kept = self.shape.layer if self.checkpointing and self.adapter else self.shape.layer * self.shape.layers
        return HALF * (kept + self.shape.embedding)

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained value and of its gradient; an adapter is float32 over whatever base."""
        return HALF if (self.precision.weight == HALF and not self.adapter) or self.deepspeed_half else FLOAT32

    @property
    def gradients(self) -> float:
        return self.trainable * self.trained_bytes / self.shards(2)

    @property
    def optimizer(self) -> float:
        names = [name for name in OPTIMIZER_BYTES if name in self.optim]
        adamw = ADAMW_BYTES if self.deepspeed_half else ADAMW_BYTES * self.trained_bytes / FLOAT32
        moments, master = OPTIMIZER_BYTES[names[0]] if names else adamw, FLOAT32 if self.deepspeed_half else 0
        in_float32 = (FLOAT32 - 1) * moments * self.never_of_8_bits
        return 0.0 if self.offloaded else (self.trainable * (moments + master) + in_float32) / self.shards(1)

    @property
    def never_of_8_bits(self) -> int:
        """Values of a trained embedding, whose moments transformers keeps in float32 with bitsandbytes' optimizers."""
        return self.trained_embedding if "8bit" in self.optim and "torch" not in self.optim else 0

    @property
    def trained_embedding(self) -> int:
        return self.shape.embedding if not self.adapter and self.trainable > self.shape.layers * self.shape.layer else 0

    @property
    def last(self) -> float:
        """What the end of a backward pass adds to gradients: a tied embedding has two, and gloo reduces a copy."""
        copies = int(self.shape.tied) + int(self.sharding == "ddp" and self.runtime > 0)
        return copies * self.trained_embedding * self.trained_bytes

    @property
    def exchange(self) -> float:
        """What is sent or gathered: DDP's buckets of all gradients, DeepSpeed's buckets, layers whole for a moment."""
        if self.sharding == "ddp":
            return float(self.trainable * self.trained_bytes)
        if self.sharding in ("zero1", "zero2"):
            return 2.0 * self.trained_bytes * min(BUCKET, self.trainable)
        if self.sharding in ("zero3", "fsdp"):  # the layer at work and the next one; the embedding is one of its own
            whole = 2 * self.shape.layer + self.shape.embedding * (1 if self.shape.tied else 2)
            return whole * (HALF if self.precision.activation == HALF else FLOAT32)
        return 0.0

    @property
    def saved(self) -> float:
        """What all layers keep for the backward pass; with checkpointing each keeps its input alone."""
        layer = layer_bytes(self.shape, self.precision, self.batch)
        if self.checkpointing:
            layer = (HALF if self.precision.half_weights else FLOAT32) * self.shape.hidden
        return self.batch.tokens * self.shape.layers * layer + mask_bytes(self.batch, self.precision)

    @property
    def work(self) -> float:
        """What one layer holds for a moment in the backward pass; with checkpointing all that it computes again."""
        again = layer_bytes(self.shape, self.precision, self.batch) if self.checkpointing else 0
        return self.batch.tokens * (again + layer_work(self.shape, self.precision, self.batch))

    @property
    def loss(self) -> float:
        """What the loss holds at its largest."""
        tokens = self.batch.tokens
        if self.head in (FUSED, TILED):
            trained = self.trained_embedding > 0
            head = fused_head(self.shape, self.precision, tokens, self.head == FUSED, trained)
            return head + tokens * self.head_bytes
        if self.head == PIECES:
            return pieces_head(self.shape, self.precision, tokens) + tokens * self.head_bytes
        whole = 0 if self.head == NO_HEAD else whole_logits(self.shape)
        return tokens * (whole + self.head_bytes)

    @property
    def activations(self) -> float:
        return self.saved + self.loss + self.work

    @property
    def held(self) -> float:
        """What is there all the time."""
        return self.weights + self.casts + self.optimizer + self.exchange + self.frozen_copies + self.runtime

    @property
    def kept(self) -> float:
        """Freed blocks that a process on a CPU still holds, as other blocks lie among them."""
        return KEPT * (self.saved + self.loss) if self.runtime else 0.0

    @property
    def at_end(self) -> float:
        """The last layer's moment of a backward pass, and the embedding's after it; half copies are gone by then."""
        return self.gradients + max(self.work, self.last) - self.casts

    @property
    def peak(self) -> float:
        """The largest moment of a step: the loss, the first layer that the backward pass meets, or the last."""
        before = self.gradients if self.accumulation > 1 else 0.0
        return self.held + self.kept + max(before + self.saved + max(self.loss, self.work), self.at_end)

    @property
    def total(self) -> float:
        """What must be free."""
        before = self.gradients if self.accumulation > 1 else 0.0
        return self.held + self.kept + max(before + self.saved + self.loss + self.work, self.at_end)

    def least(self, certain_rows: bool) -> float:
        """What is needed whatever the data is; `certain_rows` says that some rows have the batch's length."""
        before = self.gradients if self.accumulation > 1 else 0.0
        if not certain_rows:
            return self.held + max(before, self.gradients + self.last - self.casts)
        loss = 0.0 if self.head in (WHOLE, NO_HEAD) else self.loss  # of these, fewer positions may be computed
        return self.held + max(self.at_end, before + self.saved + max(loss, self.work))

    @property
    def parts(self) -> dict[str, float]:
        """Bytes by what they are for; those of moments that never meet are all named."""
        named = {
            "weights": self.weights, "half copies of weights": self.casts, "gradients": self.gradients,
            "optimizer": self.optimizer, "exchange between processes": self.exchange,
            "frozen models": self.frozen_copies, "saved activations": self.saved, "one layer at work": self.work,
            "loss": self.loss, "interpreter and libraries": self.runtime, "freed and kept": self.kept,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value}


def largest_batch(sizes: Sizes, usable: float, total: Callable[[Sizes], float] = lambda sizes: sizes.total) -> int:
    """The most rows of a micro-batch whose total is at most `usable` bytes; 0 where a single one is too much."""

    def fits(rows: int) -> bool:
        return total(replace(sizes, batch=replace(sizes.batch, rows=rows))) <= usable

    rows = 1
    if not fits(rows):
        return 0
    while fits(2 * rows) and rows < 2**20:
        rows *= 2
    low, high = rows, 2 * rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:.0f} MiB"
