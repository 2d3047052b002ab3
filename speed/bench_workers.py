"""Compare one sampling process with several, on a real model and real questions: seconds, memory, and the same samples.

    make bench-workers ARGS="MODEL --data_dir data --benchmark gsm8k"

Greedy. Every process has one thread; one process of as many threads as there were processes is printed beside them,
whose sums have another order. Seconds are of sampling alone, without the start; memory is the proportional set size
(PSS), in which pages that processes share are divided among them. Run it on free cores: the load is printed.
"""

import argparse
import os
import time
from pathlib import Path

import psutil
import torch

from posttrain.data.benchmarks import load_benchmarks
from posttrain.evaluation.settings import Asked, ask
from posttrain.generation.packed_weights import pack_weights
from posttrain.generation.sample import Sample
from posttrain.generation.samplers import HfSampler, StretchSampler
from posttrain.generation.share import Share
from posttrain.generation.workers import WorkerSampler
from posttrain.models.loading import load_model, read_checkpoint
from posttrain.recipe.sampling_options import EvalOptions


def timed(name: str, sampler: StretchSampler, asked: Asked, pids: list[int]) -> tuple[float, list[Sample]]:
    """Seconds and samples, after one prompt to warm up; the processes `pids` did it."""
    list(sampler.sample(asked.ids[:1], asked.decoding))
    began, used = time.perf_counter(), cpu_seconds(pids)
    samples = sorted(sampler.sample(asked.ids, asked.decoding), key=lambda sample: sample.index)
    seconds, used = time.perf_counter() - began, cpu_seconds(pids) - used
    tokens = sum(sample.tokens for sample in samples)
    rates = f"{tokens / seconds:,.0f} tokens/s, {tokens / used:,.0f} a CPU second"
    print(f"{name}: {seconds:.1f} s, {used:.1f} CPU s, {tokens:,} tokens, {rates}", flush=True)
    return seconds, samples


def cpu_seconds(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


def agreement(samples: list[Sample], others: list[Sample]) -> str:
    same = sum(one == other for one, other in zip(samples, others, strict=True))
    return f"{same} of {len(samples)} samples are the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--benchmark", default="gsm8k")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", action="store_true", help="also one process of as many threads")
    given = parser.parse_args()
    options = EvalOptions(
        trainer="eval", model=given.model, benchmarks=given.benchmark, max_new_tokens=given.max_new_tokens, seed=0
    )
    checkpoint = read_checkpoint(given.model)
    (asked,) = ask(load_benchmarks(given.benchmark, given.data_dir, given.questions), options, checkpoint)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {len(asked.ids)} questions", flush=True)

    with WorkerSampler(checkpoint, "auto", given.batch_size, Share(given.workers, 1)) as sampler:
        pids = [worker.pid for worker in sampler.workers]
        shared, samples = timed(f"{given.workers} processes of 1 thread", sampler, asked, pids)
        for worker in sampler.workers:
            memory = psutil.Process(worker.pid).memory_full_info()
            print(f"  {worker.name}: {memory.rss / 2**20:,.0f} MiB resident, {memory.pss / 2**20:,.0f} MiB PSS")
    torch.set_num_threads(1)
    here = HfSampler(pack_weights(load_model(checkpoint, "auto")), checkpoint.tokenizer, given.batch_size)
    alone, wanted = timed("1 process of 1 thread", here, asked, [os.getpid()])
    print(f"  {alone / shared:.2f} times as fast in {given.workers} processes; {agreement(wanted, samples)}")
    if given.threads:
        torch.set_num_threads(given.workers)
        seconds, others = timed(f"1 process of {given.workers} threads", here, asked, [os.getpid()])
        print(f"  {seconds / shared:.2f} times as fast in {given.workers} processes; {agreement(wanted, others)}")


if __name__ == "__main__":
    main()
