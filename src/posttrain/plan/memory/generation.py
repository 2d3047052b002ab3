"""Memory of what answers: a vLLM server, vLLM inside the trainer, or completions in slots of this process."""

from dataclasses import dataclass
from typing import Any

from posttrain.plan.memory.activations import FLOAT32, HALF
from posttrain.plan.memory.process import GIB
from posttrain.plan.shapes import Shape

SERVER_SHARE = 0.9  # of a GPU that a server of its own takes; vLLM's default
COLOCATED_SHARE = 0.3  # of a GPU that vLLM inside the trainer takes; TRL's default
VLLM_OVERHEAD = 1.5 * GIB  # CUDA graphs, work of a step of 8,192 tokens, logits of 256 rows
CONTEXT = 512  # tokens of a prompt where the recipe does not bound it
LOGIT_COPIES = 3  # in float32: scaled, sorted or exponentiated, and the noise of a draw


@dataclass(frozen=True)
class Generation:
    """Bytes by part of one process that generates, and the rows it holds at once. `reserved` is asked for whole."""

    parts: dict[str, float]
    rows: float
    reserved: float | None = None

    @property
    def total(self) -> float:
        return self.reserved or sum(self.parts.values())


def cache_bytes(shape: Shape, per_value: float = HALF) -> float:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.key * per_value


def vllm(shape: Shape, usable: float, share: float, context: int, split: int = 1) -> Generation:
    """vLLM in bfloat16 with `share` of a device: what weights and work leave holds keys and values.

    `split` is the number of GPUs that share a model (vllm_tensor_parallel_size), `context` a prompt and its completion.
    """
    weights, reserved = HALF * shape.parameters / split, share * usable
    cache = reserved - weights - VLLM_OVERHEAD
    rows = max(0.0, cache) / (cache_bytes(shape) / split * max(1, context))
    parts = {"weights": weights, "CUDA graphs and work": VLLM_OVERHEAD, "keys and values": max(0.0, cache)}
    return Generation(parts, rows, reserved if cache > 0 else None)


def slots(shape: Shape, rows: int, context: int, per_value: float = HALF, weights: bool = True) -> Generation:
    """Completions in slots of this process (posttrain.generation.slots); without `weights` they are the trainer's."""
    parts = {
        "keys and values": rows * context * cache_bytes(shape, per_value),
        "logits": LOGIT_COPIES * rows * shape.vocabulary * FLOAT32,
    }
    if weights:
        parts = {"weights": per_value * shape.parameters, **parts}
    return Generation(parts, rows)


def grpo_generation(values: dict[str, Any], shape: Shape, usable: float, per_value: float) -> tuple[str, Generation]:
    """Where a GRPO recipe generates (`server`, `colocate` or `slots`), and what that takes."""
    context = CONTEXT + int(values["max_completion_length"])
    if not values.get("use_vllm"):
        return "slots", slots(shape, int(values.get("per_device_eval_batch_size", 8)), context, per_value, False)
    mode, split = values.get("vllm_mode", "colocate"), int(values.get("vllm_tensor_parallel_size", 1))
    share = SERVER_SHARE if mode == "server" else float(values.get("vllm_gpu_memory_utilization", COLOCATED_SHARE))
    return mode, vllm(shape, usable, share, context, split)
