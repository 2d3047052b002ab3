"""Measure what GRPO with dynamic sampling saves: steps and sampled tokens to the accuracy of the run without it.

    make bench-rl                          # after make demo, from outputs/tiny_sft_early/final; three seeds, an hour
    make bench-rl ARGS="--model … --dataset … --steps 20 --seeds 1"

For each seed the recipe runs as it is, with `dynamic_sampling: true`, and with `question_sampling: informative` beside;
all from one model, with the same guard questions. What the first run reaches is the mean of its last two evaluations;
printed is the step, and the tokens seen, at which each of the others has a mean of two evaluations as high, as shares
of the first run's. Fields of the recipe can be overridden.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RUNS = {
    "as it is": [],
    "dynamic": ["--dynamic_sampling", "true"],
    "informative": ["--dynamic_sampling", "true", "--question_sampling", "informative"],
}


@dataclass(frozen=True)
class Curve:
    """What one run reached: guard accuracy by step, and tokens seen by step."""

    accuracy: dict[int, float]
    tokens: dict[int, int]

    @property
    def smooth(self) -> dict[int, float]:
        """At each evaluation the mean of it and of the one before."""
        steps = sorted(self.accuracy)
        return {b: (self.accuracy[a] + self.accuracy[b]) / 2 for a, b in itertools.pairwise(steps)}

    @property
    def last(self) -> int:
        return max(self.smooth)

    def reaches(self, accuracy: float) -> int | None:
        """The first step at which the smoothed accuracy is as high."""
        return next((step for step, found in sorted(self.smooth.items()) if found >= accuracy), None)


def read_curve(out: Path) -> Curve:
    """The curve of a run that has ended."""
    guard = [json.loads(line) for line in (out / "guard.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return Curve({g["step"]: g["accuracy"] for g in guard}, {m["step"]: m["tokens_seen"] for m in metrics})


def train(asked: argparse.Namespace, fields: list[str], options: list[str], seed: int, out: Path) -> Curve:
    """Run the recipe by its script."""
    values = {
        "model_name_or_path": asked.model, "dataset_name": asked.dataset, "max_steps": asked.steps, "seed": seed,
        "guard_steps": asked.every, "guard_prompts": asked.prompts, "output_dir": out, "save_steps": asked.steps,
        "probe": "off",
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "src/grpo.py", asked.recipe, *words, *options, *fields]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return read_curve(out)


def compared(name: str, curve: Curve, plain: Curve) -> tuple[float, float] | None:
    """Shares of the plain run's steps and tokens at which a run is as good as that one's end, None if it never is."""
    goal = plain.smooth[plain.last]
    step = curve.reaches(goal)
    if step is None:
        print(f"    {name}: never reached {goal:.1%}; ended at {curve.smooth[curve.last]:.1%}", flush=True)
        return None
    shares = step / plain.last, curve.tokens[step] / plain.tokens[plain.last]
    print(f"    {name}: step {step} of {plain.last}, steps × {shares[0]:.2f}, tokens × {shares[1]:.2f}; ended at "
          f"{curve.smooth[curve.last]:.1%}", flush=True)  # fmt: skip
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/tiny_grpo.yaml")
    parser.add_argument("--model", default="outputs/tiny_sft_early/final", help="the checkpoint to start from")
    parser.add_argument("--dataset", default="data/tiny_math")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=5, help="steps between two evaluations")
    parser.add_argument("--prompts", type=int, default=200, help="questions of an evaluation")
    asked, fields = parser.parse_known_args()
    for path in (asked.model, asked.dataset):
        if not Path(path).is_dir():
            sys.exit(f"error: {path}: no such directory; `make demo` makes it")
    found: dict[str, list[tuple[float, float] | None]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(asked.seeds):
            curves = {
                name: train(asked, fields, options, seed, Path(directory) / f"{name} {seed}".replace(" ", "_"))
                for name, options in RUNS.items()
            }
            plain = curves["as it is"]
            print(f"seed {seed}: {plain.accuracy[0]:.1%} → {plain.smooth[plain.last]:.1%} in {plain.last} steps, "
                  f"{plain.tokens[plain.last]:,} tokens", flush=True)  # fmt: skip
            for name in list(RUNS)[1:]:
                found[name].append(compared(name, curves[name], plain))
    for name in list(RUNS)[1:]:
        shares = [each for each in found[name] if each]
        if shares:
            steps, tokens = (statistics.mean(column) for column in zip(*shares, strict=True))
            print(f"{name}: mean of {len(shares)} of {asked.seeds} seeds: steps × {steps:.2f}, tokens × {tokens:.2f}")


if __name__ == "__main__":
    main()
