"""Measure retrieval: product keys against brute force over the whole bank, and the peak memory of a layer.

    make bench-memory                 # banks of 2^10 to 2^20 rows

Both compute the 16 best rows of the same queries; a case counts only if they find the same rows. A ratio is the median
over rounds in which both ran one after the other. Peak memory is that of a process of its own that reads once.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from posttrain.memory.layer import MemoryBlock, MemoryConfig
from posttrain.memory.retrieval import product_key_topk

DIMENSION, CANDIDATES, LENGTH, HIDDEN = 128, 16, 16, 2560  # Qwen3-4B's hidden size


def main() -> None:
    arguments = parse_arguments()
    if arguments.peak is not None:
        print(peak_megabytes(arguments.peak, arguments.tokens))
        return
    print(f"{arguments.tokens} queries of {DIMENSION} dimensions, {CANDIDATES} best rows, one thread")
    print(
        f"{'rows':>8} {'product keys':>14} {'brute force':>13} {'ratio':>7}  exact   peak memory of one layer's reading"
    )
    for power in range(10, 21, 2):
        fast, brute, exact = compare(2**power, arguments.tokens, arguments.rounds)
        ratio = statistics.median(b / f for f, b in zip(fast, brute, strict=True))
        command = [sys.executable, __file__, "--peak", str(2**power), "--tokens", str(arguments.tokens)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        times = f"{1e3 * statistics.median(fast):>11.1f} ms {1e3 * statistics.median(brute):>10.1f} ms {ratio:>7.1f}"
        print(f"2^{power:<6} {times}  {exact!s:<6}  {peak[1]} MB, of which {peak[0]} before", flush=True)


def compare(rows: int, tokens: int, rounds: int) -> tuple[list[float], list[float], bool]:
    """Seconds of both ways by round, and whether they found the same."""
    generator = torch.Generator().manual_seed(0)
    r = math.isqrt(rows)
    keys = torch.randn(2, r, DIMENSION // 2, generator=generator) / math.sqrt(DIMENSION // 2)
    queries = torch.randn(tokens, DIMENSION, generator=generator)
    whole = torch.cat([keys[0].repeat_interleave(r, 0), keys[1].repeat(r, 1)], dim=1)  # every row's key, written out
    first, second = queries.chunk(2, dim=1)
    fast_seconds, brute_seconds, exact = [], [], True
    for _ in range(rounds):
        started = time.perf_counter()
        scores, found = product_key_topk(first @ keys[0].T, second @ keys[1].T, CANDIDATES)
        fast_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        best = [(piece @ whole.T).topk(CANDIDATES, dim=1) for piece in queries.split(64)]
        brute_seconds.append(time.perf_counter() - started)
        values, places = (torch.cat(column) for column in zip(*best, strict=True))
        # Two sums that round to the same number may come in either order.
        same_rows = (found.sort(dim=1).values == places.sort(dim=1).values).all(dim=1)
        tied = (values[:, -1] - scores[:, -1]).abs() < 1e-4
        exact &= bool(torch.allclose(scores, values, atol=1e-4) and (same_rows | tied).all())
    return fast_seconds, brute_seconds, exact


def peak_megabytes(rows: int, tokens: int) -> str:
    """Peak resident megabytes before anything is made, and after a block with its bank has read `tokens` tokens."""
    before = high_water()
    config = MemoryConfig((0,), rows, LENGTH, 0, DIMENSION, CANDIDATES, fusion_rank=32)
    block = MemoryBlock(HIDDEN, 1e-6, config).eval()
    bank = torch.randint(1, 1000, (rows, LENGTH))
    embedding = torch.randn(1000, HIDDEN)
    with torch.inference_mode():
        block(torch.randn(1, tokens, HIDDEN), bank, embedding)
    return f"{before} {high_water()}"


def high_water() -> int:
    """The most memory this process held so far, in megabytes; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="queries at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
