"""What a vLLM server on a CPU runs with, from the model and from what this machine has free: dtype, threads, KV cache.

vLLM's own choices there are core 0, the dtype of the file whether or not the processor has units for it, and a share of
all memory, free or not.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.console import plural
from posttrain.generation.vllm.server import ServerError, hf_overrides
from posttrain.hardware import CPU_INFO, busy_cores, crowding, free_cores, free_memory, slow_bf16, usable_cores
from posttrain.models.loading import read_config
from posttrain.models.sizes import cache_bytes_per_token, count_parameters

GIB = 2**30
SEQUENCES = 64  # answers at once
USUAL = 2048  # tokens of prompt and answer together, for which the cache is made to hold so many answers
PROCESS_BYTES = 2 * GIB  # of the server's three processes beside weights and cache
COPIES = 2  # of the weights while they are packed for the matrix units
LEAST_CACHE = 64 * 2**20  # bytes
BLOCK = 128  # tokens of the cache that vLLM gives out at once on a CPU
THREADS, BINDING, SPACE = "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE"  # win where set


@dataclass(frozen=True)
class CpuSettings:
    """Arguments of the server that depend on model and machine. `context` is what one sequence may have in tokens."""

    dtype: str
    threads: int
    cache_bytes: int
    tokens: int  # that fit into the cache
    context: int

    def arguments(self) -> list[str]:
        """Of vLLM's command line."""
        return [
            "--kv-cache-memory-bytes", str(self.cache_bytes), "--max-num-seqs", str(SEQUENCES),
            "--max-model-len", str(self.context),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Variables beside them; vLLM would bind threads to cores that other work may have."""
        return {THREADS: str(self.threads), BINDING: os.environ.get(BINDING, "nobind")}

    def lines(self) -> dict[str, str]:
        """What to print of it: what computes, how many tokens fit, and what makes it slow."""
        cache = f"{self.cache_bytes / GIB:.1f} GiB of keys and values hold {self.tokens:,} tokens"
        warning = crowding(self.threads, 1, usable_cores(), busy_cores())
        if self.dtype == "bfloat16":
            warning = warning or slow_bf16(CPU_INFO)
        return {
            "machine": f"CPU, {plural(self.threads, 'thread')}, {self.dtype}",
            "cache": f"{cache}; up to {SEQUENCES} answers at once, {self.context:,} tokens each with their prompt",
            "warning": warning or "",
        }


def settle_on_cpu(values: dict[str, Any]) -> CpuSettings | None:
    """Settings for a recipe's server, None on a GPU; what the recipe, the command line or vLLM's variables say wins.

    Raises ServerError where the cache would not hold one sequence of the length that is asked for.
    """
    if torch.cuda.is_available():
        return None
    config = read_config(values["model_name_or_path"], values.get("model_revision"))
    dtype = choose_dtype(values.get("dtype"), config.dtype, slow_bf16(CPU_INFO) == "")
    threads = os.environ.get(THREADS, "").partition(",")[0]
    positions = hf_overrides(values).get("max_position_embeddings") or config.get_text_config().max_position_embeddings
    asked = values.get("vllm_max_model_length")
    per_token = cache_bytes_per_token(config, getattr(torch, dtype))
    weights = count_parameters(config) * getattr(torch, dtype).itemsize
    space = float(os.environ.get(SPACE) or 0) * GIB
    cache = int(space) or cache_size(per_token, asked or positions, weights, free_memory())
    tokens = cache // per_token // BLOCK * BLOCK
    return CpuSettings(
        dtype,
        int(threads) if threads.isdigit() and int(threads) else free_cores(usable_cores(), busy_cores()),
        cache,
        tokens,
        choose_context(tokens, asked, positions),
    )


def choose_dtype(asked: str | None, stored: torch.dtype | None, fast_bf16: bool) -> str:
    """What is asked, or bfloat16 for weights stored so on a processor that has units for it, or float32."""
    if asked in ("float32", "bfloat16"):
        return asked
    return "bfloat16" if stored == torch.bfloat16 and fast_bf16 else "float32"


def cache_size(per_token: int, context: int, weights: int, free: int) -> int:
    """Bytes for keys and values: so that SEQUENCES of usual length fit, and one of the whole context.

    At most half of what is free beside the weights, as others want memory too.
    """
    wanted = per_token * (max(context, SEQUENCES * min(context, USUAL)) + BLOCK)
    return max(LEAST_CACHE, min(wanted, (free - COPIES * weights - PROCESS_BYTES) // 2))


def choose_context(tokens: int, asked: int | None, positions: int) -> int:
    """Tokens that one sequence may have: what was asked, else what the model can and the cache holds."""
    if asked and asked > tokens:
        raise ServerError(
            f"vllm_max_model_length: {asked}: the memory that is free holds keys and values of {tokens:,} tokens; "
            f"lower it, free memory, or set {SPACE} to gibibytes"
        )
    if tokens < BLOCK:
        raise ServerError(f"the memory that is free holds keys and values of {tokens} tokens; free some")
    return asked or min(positions, tokens)
