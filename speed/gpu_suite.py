"""Measure on one GPU what a CPU cannot show, in slices that end within eight minutes each and can run alone.

    python speed/gpu_suite.py docs/results/gpu                        # what has no file there yet; the rest is kept
    python speed/gpu_suite.py docs/results/gpu --only ceilings sft-varlen_sdpa
    python speed/gpu_suite.py OUT --tiny                              # the same code on small shapes, on a CPU too

A model of Qwen2.5-1.5B's shape with random weights reads random ids, so nothing is fetched from a network. Every slice
is a process of its own and leaves one JSON file with the device and the versions in it. A slice that this machine
cannot run says why and leaves none. Beside this project's packages, flash-attn needs its own wheel.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_sampling import decoding, grpo
from gpu_training import example_by_example, head, packed, padded, plans, trl
from gpu_world import FULL, TINY, Skip, World, ceilings, describe

from posttrain import atomic

LIMIT = 480.0  # seconds of a slice
ATTENTIONS = ("varlen_sdpa", "flash_attention_2", "flash_attention_3", "sdpa")
Slice = Callable[[World], dict[str, Any]]
SLICES: dict[str, Slice] = {
    "ceilings": ceilings,
    **{f"sft-{name}": lambda world, name=name: packed(world, name, False) for name in ATTENTIONS},
    **{f"sft-{name}-checkpointing": lambda world, name=name: packed(world, name, True) for name in ATTENTIONS},
    "sft-varlen_sdpa-one-by-one": example_by_example,
    "sft-trl-sdpa-checkpointing": lambda world: trl(world, "sdpa", rows=1),
    "sft-trl-varlen_sdpa-checkpointing": lambda world: trl(world, "varlen_sdpa", rows=None),
    "sft-padded": padded,
    "head": head,
    "decoding": decoding,
    "grpo": grpo,
    "plan": plans,
}  # fmt: skip


def run_alone(name: str, out: Path, world: World) -> None:
    """Run one slice in this process and write its file; exit code 3 where this machine cannot run it."""
    began = time.perf_counter()
    try:
        found = SLICES[name](world)
    except Skip as reason:
        print(f"{name}: skipped: {reason}", flush=True)
        sys.exit(3)
    result = {"slice": name, **describe(world), "seconds": round(time.perf_counter() - began, 1), **found}
    atomic.write_bytes(out / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2), flush=True)


def run_all(names: list[str], out: Path, options: list[str]) -> int:
    """Run every slice that has no file yet, each in a process of its own; the number of those that failed."""
    outcomes: dict[str, str] = {}
    for name in names:
        if (out / f"{name}.json").is_file():
            outcomes[name] = "kept from before"
            continue
        command = [sys.executable, __file__, str(out), "--slice", name, *options]
        try:
            code = subprocess.run(command, timeout=LIMIT, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        outcomes[name] = {0: "done", 3: "skipped", -1: f"took over {LIMIT:.0f} s"}.get(code, f"failed with {code}")
    print("\n".join(f"{name:<36}{outcome}" for name, outcome in outcomes.items()))
    return sum(outcome.startswith(("failed", "took")) for outcome in outcomes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the JSON files")
    parser.add_argument("--only", nargs="+", choices=SLICES, default=list(SLICES))
    parser.add_argument("--tiny", action="store_true", help="small shapes: whether it runs, not how fast")
    parser.add_argument("--model", help="directory of a real model, whose tokenizer the slice of GRPO needs")
    parser.add_argument("--slice", choices=SLICES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("error: no GPU is visible; --tiny shows on a CPU that the slices run")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.slice:
        run_alone(given.slice, given.out, World(TINY if given.tiny else FULL, given.model))
        return
    options = [*(["--tiny"] if given.tiny else []), *(["--model", given.model] if given.model else [])]
    if failed := run_all(given.only, given.out, options):
        sys.exit(f"error: {failed} slices failed; what they printed is above")


if __name__ == "__main__":
    main()
