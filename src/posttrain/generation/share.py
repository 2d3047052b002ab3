"""How many processes share the work of a sampler, decided before a model is loaded."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from posttrain.errors import PosttrainError
from posttrain.generation.slots import cache_width
from posttrain.generation.stretches import number_of_stretches
from posttrain.hardware import busy_cores, free_cores, free_memory, usable_cores
from posttrain.models.loading import Checkpoint
from posttrain.models.sizes import cache_bytes_per_token, count_parameters

NumWorkers = Literal["auto"] | int
# Parameters × tokens from which on several processes are worth their start, some seconds: less is done before.
WORTH = {"cpu": 5e11, "cuda": 5e13}
PROCESS_BYTES = 2**29  # of a process beside weights and cache: what torch and transformers write to, activations


@dataclass(frozen=True)
class Work:
    """What is asked of a sampler: prompts of every call, tokens of the longest one and of its completion at most.

    `together` prompts that follow one another are of one question.
    """

    prompts: list[int]
    longest: int
    max_new_tokens: int
    together: int = 1

    def stretches(self, batch_size: int) -> int:
        """Pieces of the call that has most of them: what processes can share."""
        return max(min(number_of_stretches(n, batch_size), n // self.together) for n in self.prompts)


@dataclass(frozen=True)
class Share:
    """So many processes of so many threads each; threads are None where torch's own number stands."""

    workers: int
    threads: int | None = None


@dataclass(frozen=True)
class Weight:
    """What processes take: bytes of weights, which they share, and bytes that each has for itself."""

    shared: int
    own: int


def settle(wanted: NumWorkers, work: Work, checkpoint: Checkpoint, dtype: str, batch_size: int) -> Share:
    """How many processes sample; raises PosttrainError where more are wanted than there are GPUs.

    One is this process itself, with torch's own number of threads. Several have one thread each on a CPU, or
    OMP_NUM_THREADS; so has one that is alone because nothing else is free, as samples are the same bytes only then.
    """
    gpus, stretches = torch.cuda.device_count(), work.stretches(batch_size)
    if wanted != "auto":
        if gpus and wanted > gpus:
            raise PosttrainError(f"num_workers: {wanted}: more than the {gpus} GPUs that are visible; lower it")
        return Share(1) if wanted == 1 else Share(min(wanted, stretches), None if gpus else own_threads())
    parameters = count_parameters(checkpoint.config)
    operations = parameters * sum(work.prompts) * work.max_new_tokens
    if stretches == 1 or operations < WORTH["cuda" if gpus else "cpu"]:
        return Share(1)
    if gpus:
        return Share(min(gpus, stretches))
    weight = weigh(work, checkpoint, dtype, batch_size, parameters)
    return share_cpu(stretches, free_cores(usable_cores(), busy_cores()), own_threads(), free_memory(), weight)


def share_cpu(stretches: int, cores: int, threads: int, memory: int, weight: Weight) -> Share:
    """As many processes of so many threads as free cores and bytes of free memory allow, and stretches keep busy."""
    fit = (memory - weight.shared) // weight.own
    return Share(max(1, min(stretches, cores // threads, fit)), threads)


def weigh(work: Work, checkpoint: Checkpoint, dtype: str, batch_size: int, parameters: int) -> Weight:
    """What the processes will take on a CPU, where all of them have the weights of one."""
    stored = checkpoint.config.dtype or torch.float32
    kind = stored if dtype == "auto" else getattr(torch, dtype)
    width = cache_width(work.longest + work.max_new_tokens)
    own = batch_size * width * cache_bytes_per_token(checkpoint.config, kind) + PROCESS_BYTES
    return Weight(parameters * kind.itemsize, own)


def own_threads() -> int:
    """Threads of one process of several: OMP_NUM_THREADS where it is set, else one."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(told) if told.isdigit() and int(told) else 1
