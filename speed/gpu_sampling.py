"""The slices of speed/gpu_suite.py that generate: our engine beside `generate`, and where a GRPO step's time goes."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from bench_eval import static
from gpu_world import Skip, World

from posttrain.generation.slots import SlotEngine

DATA = Path("data/tiny_math")


def decoding(world: World) -> dict[str, Any]:
    """Greedy tokens a second in bfloat16. The first token of a completion decides its length, of a lognormal kind."""
    shape, rng = world.shape, random.Random(0)
    model = world.model("sdpa", torch.bfloat16).eval()
    prompts = [
        [rng.randrange(1, shape.vocabulary) for _ in range(rng.randint(16, 200))] for _ in range(2 * shape.slots)
    ]

    def length(first: int) -> int:
        mean = shape.new_tokens // 3
        return min(shape.new_tokens, max(4, int(mean * random.Random(first).lognormvariate(-0.3, 0.8))))

    def in_slots() -> dict[int, list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        engine, waiting = SlotEngine(model, shape.slots), [(i, prompts[i]) for i in order]
        return dict(engine.complete(waiting, shape.new_tokens, lambda ids: len(ids) == length(ids[0])))

    firsts = static(model, prompts, [1] * len(prompts), shape.slots)  # and what runs once is warm
    lengths = [length(firsts[i][0]) for i in range(len(prompts))]
    static_rows: dict[int, list[int]] = {}
    slot_rows: dict[int, list[int]] = {}
    theirs = world.seconds(lambda: static_rows.update(static(model, prompts, lengths, shape.slots)), 1, warm_up=0)
    ours = world.seconds(lambda: slot_rows.update(in_slots()), 1, warm_up=0)
    by_static, by_slots = (sum(map(len, rows.values())) / s for rows, s in ((static_rows, theirs), (slot_rows, ours)))
    return {
        "tokens": sum(map(len, slot_rows.values())),
        "ours_tokens_per_second": round(by_slots),
        "generate_tokens_per_second": round(by_static),
        "times_as_fast": round(by_slots / by_static, 2),
        "same_completions": f"{sum(ids == static_rows[i] for i, ids in slot_rows.items())} of {len(prompts)}",
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
