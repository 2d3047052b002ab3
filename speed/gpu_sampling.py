"""The slices of speed/gpu_suite.py that generate: our engine beside `generate`, and where a GRPO step's time goes."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from bench_eval import in_slots, static
from gpu_world import Skip, World

DATA = Path("data/tiny_math")


def decoding(world: World) -> dict[str, Any]:
    """Greedy tokens a second in bfloat16; completions end where they were told to, a lognormal length of the budget."""
    shape, rng = world.shape, random.Random(0)
    model = world.model("sdpa", torch.bfloat16).eval()
    prompts = [
        [rng.randrange(1, shape.vocabulary) for _ in range(rng.randint(16, 200))] for _ in range(2 * shape.slots)
    ]
    mean = shape.new_tokens // 3
    lengths = [min(shape.new_tokens, max(4, int(mean * rng.lognormvariate(-0.3, 0.8)))) for _ in prompts]
    wanted: dict[int, list[int]] = {}

    def by_generate() -> None:
        wanted.update(static(model, prompts, lengths, shape.slots))

    theirs = world.seconds(by_generate, times=1)
    ours = world.seconds(lambda: in_slots(model, prompts, wanted, shape.slots), times=1)
    same = sum(ids == wanted[i] for i, ids in in_slots(model, prompts, wanted, shape.slots).items())
    tokens = sum(map(len, wanted.values()))
    return {
        "tokens": tokens,
        "ours_tokens_per_second": round(tokens / ours),
        "generate_tokens_per_second": round(tokens / theirs),
        "times_as_fast": round(theirs / ours, 2),
        "same_completions": f"{same} of {len(prompts)}",
    }


def grpo(world: World) -> dict[str, Any]:
    """The lines of speed/bench_grpo.py: how the seconds of a step divide, beside TRL's trainer."""
    if not world.directory:
        raise Skip("give a model's directory: --model DIR")
    if not (DATA / "manifest.json").is_file():
        subprocess.run([sys.executable, "data_prep/tiny_math.py"], check=True)
    command = [sys.executable, "speed/bench_grpo.py", "--model", world.directory, "--rounds", "1", "--steps", "4"]
    rows, accumulation = ("64", "8") if world.cuda else ("8", "1")  # 64 prompts of 8, or one
    command += ["--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulation]
    command += ["--max_completion_length", str(world.shape.new_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"lines": done.stdout.splitlines()[-4:]}
