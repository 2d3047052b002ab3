"""Shapes, rows and clocks of speed/gpu_suite.py, and what the device reaches at most."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import trl
from bench_sft import rows_of
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, set_seed

from posttrain.models import packed_attention

MEAN_DOCUMENT, SPREAD = 1400, 0.6  # tokens of a document of the lognormal kind that reasoning traces are


class Skip(Exception):
    """This machine cannot run the slice."""


@dataclass(frozen=True)
class Shape:
    """A model and what it reads. `tokens` are those of a micro-batch, `length` those of a packed row."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    length: int
    tokens: int
    warm_up: int
    steps: int
    slots: int
    new_tokens: int
    matrix: int


FULL = Shape(1536, 8960, 28, 12, 2, 151936, 4096, 16384, 4, 12, 256, 512, 8192)  # Qwen2.5-1.5B
TINY = Shape(64, 128, 2, 4, 2, 512, 256, 512, 1, 2, 4, 16, 64)


@dataclass(frozen=True)
class World:
    """A shape on the device of this process; `directory` is that of a real model, for what needs a tokenizer."""

    shape: Shape
    directory: str | None = None

    @property
    def cuda(self) -> bool:
        return torch.cuda.is_available()

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    def config(self, layers: int) -> Qwen2Config:
        shape = self.shape
        return Qwen2Config(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
            num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
            max_position_embeddings=8 * shape.length, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip

    def model(
        self, attention: str = "sdpa", dtype: torch.dtype = torch.float32, layers: int | None = None
    ) -> PreTrainedModel:
        """A model with random weights; raises Skip where the attention's package is not installed."""
        packed_attention.register()
        set_seed(0)
        config = self.config(self.shape.layers if layers is None else layers)
        try:
            with torch.device(self.device):  # billions of random numbers take a CPU many seconds
                return AutoModelForCausalLM.from_config(
                    config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
                )
        except ImportError as error:
            raise Skip(f"{attention}: {' '.join(str(error).split())[:200]}") from error

    def documents(self) -> Dataset:
        """Documents of random ids whose lengths are lognormal, as many as the steps read."""
        shape, rng = self.shape, random.Random(0)
        mean, wanted = MEAN_DOCUMENT * shape.length // 4096, 1.2 * shape.tokens * (shape.warm_up + shape.steps)
        lengths: list[int] = []
        while sum(lengths) < wanted:
            length = int(mean * rng.lognormvariate(-(SPREAD**2) / 2, SPREAD))
            lengths.append(min(shape.length, max(8, length)))
        return rows_of(lengths, shape.vocabulary)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], times: int = 5, warm_up: int = 2) -> float:
        """Median seconds of a call, after calls that warm up."""
        found = []
        for _ in range(warm_up + times):
            self.synchronize()
            began = time.perf_counter()
            function()
            self.synchronize()
            found.append(time.perf_counter() - began)
        return statistics.median(found[warm_up:])

    def start_memory(self) -> int:
        """Bytes in use now, from where on the peak counts; 0 on a CPU."""
        if not self.cuda:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.cuda else None


def describe(world: World) -> dict[str, Any]:
    """The device, the versions, and the shape."""
    device = torch.cuda.get_device_properties(0) if world.cuda else None
    return {
        "device": device.name if device else "CPU",
        "device_bytes": device.total_memory if device else None,
        "torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__,
        "shape": vars(world.shape),
    }  # fmt: skip


def ceilings(world: World) -> dict[str, Any]:
    """What one product of large matrices, and one copy, reach on this device."""
    n = world.shape.matrix
    a = torch.randn(n, n, dtype=torch.bfloat16, device=world.device)
    b, copy = torch.randn_like(a), torch.empty_like(a)
    product, copied = world.seconds(lambda: torch.mm(a, b)), world.seconds(lambda: copy.copy_(a))
    return {
        "matmul_tflops": round(2 * n**3 / product / 1e12, 1),
        "copy_gb_per_second": round(2 * a.numel() * a.element_size() / copied / 1e9, 1),
    }
