"""Measure what GRPO with dynamic sampling saves: steps and sampled tokens to the accuracy of the run without it.

    make bench-rl                          # after make demo, from outputs/tiny_sft_early/final; three seeds, an hour
    make bench-rl ARGS="--model … --dataset … --steps 30 --seeds 1 --runs dynamic"

For each seed the recipe trains as it is, with `dynamic_sampling: true`, and with `question_sampling: informative`
beside; all from one model, with the same questions of validation asked every few steps, and no guard that would end a
run. What the first run reaches is the mean of its last two evaluations; printed is the step, and the tokens seen, at
which each of the others has a mean of two evaluations as high, as shares of the first run's. Fields of the recipe can
be overridden.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.encode import load_tokenizer
from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.grading.grader import Grader
from posttrain.hardware import read_hardware
from posttrain.methods.grpo import build
from posttrain.methods.grpo.guard import Guard, read_guard
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.reader import read_recipe

RUNS = {
    "dynamic": ["--dynamic_sampling", "true"],
    "informative": ["--dynamic_sampling", "true", "--question_sampling", "informative"],
}


class Watch(Guard):
    """A guard that asks and lets the run go on."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self._ask(state)


@dataclass(frozen=True)
class Curve:
    """What one run reached: greedy accuracy and tokens seen, by step."""

    accuracy: dict[int, float]
    tokens: dict[int, int]

    @property
    def smooth(self) -> dict[int, float]:
        """At each evaluation the mean of it and of the one before."""
        return {b: (self.accuracy[a] + self.accuracy[b]) / 2 for a, b in itertools.pairwise(sorted(self.accuracy))}

    @property
    def last(self) -> int:
        return max(self.smooth)

    def reaches(self, accuracy: float) -> int | None:
        """The first step at which the smoothed accuracy is as high."""
        return next((step for step, found in sorted(self.smooth.items()) if found >= accuracy), None)


def train(asked: argparse.Namespace, fields: list[str], options: list[str], seed: int, out: Path) -> Curve:
    """Train the recipe as src/grpo.py does, without probe, guard and checkpoints."""
    values = {
        "model_name_or_path": asked.model, "dataset_name": asked.dataset, "max_steps": asked.steps, "seed": seed,
        "guard_steps": 0, "probe": "off", "save_strategy": "no", "logging_steps": 1, "output_dir": out,
        "disable_tqdm": "true",
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    recipe, hardware = read_recipe([asked.recipe, *words, *options, *fields], "grpo"), read_hardware()
    chosen = recipe.build(GrpoOptions)
    manifest = check_dataset(Path(asked.dataset))
    arguments = build.build_arguments(recipe, hardware)
    tokenizer = load_tokenizer(asked.model, None, chosen.eos_token)
    prompts = build.load_prompts(chosen, manifest, tokenizer)
    held_out = read_parquet(split_path(Path(asked.dataset), manifest, "validation"), QUESTIONS)
    out.mkdir()
    with Grader() as grader:
        trainer = build.build_trainer(recipe, chosen, arguments, hardware, tokenizer, prompts, grader)
        watch = Watch(trainer, by_content(held_out, asked.prompts), chosen.prompt, asked.every)
        trainer.add_callback(watch)
        trainer.train()
    tokens = {entry["step"]: entry["tokens_seen"] for entry in trainer.state.log_history if "tokens_seen" in entry}
    return Curve({line["step"]: line["accuracy"] for line in read_guard(watch.path)}, {0: 0, **tokens})


def compared(name: str, curve: Curve, plain: Curve) -> tuple[float, float] | None:
    """Shares of the plain run's steps and tokens at which a run is as good as that one's end, None if it never is."""
    goal = plain.smooth[plain.last]
    step, ended = (
        curve.reaches(goal),
        f"ended at {curve.smooth[curve.last]:.1%} with {curve.tokens[curve.last]:,} tokens",
    )
    if step is None:
        print(f"    {name}: never reached {goal:.1%}; {ended}", flush=True)
        return None
    shares = step / plain.last, curve.tokens[step] / plain.tokens[plain.last]
    print(f"    {name}: step {step}, steps × {shares[0]:.2f}, tokens × {shares[1]:.2f}; {ended}", flush=True)
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
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="what is held against the recipe")
    asked, fields = parser.parse_known_args()
    for path in (asked.model, asked.dataset):
        if not Path(path).is_dir():
            sys.exit(f"error: {path}: no such directory; `make demo` makes it")
    found: dict[str, list[tuple[float, float] | None]] = {name: [] for name in asked.runs}
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(asked.seeds):
            plain = train(asked, fields, [], seed, Path(directory) / f"plain_{seed}")
            print(f"seed {seed}: {plain.accuracy[0]:.1%} → {plain.smooth[plain.last]:.1%} in {plain.last} steps, "
                  f"{plain.tokens[plain.last]:,} tokens", flush=True)  # fmt: skip
            for name in asked.runs:
                curve = train(asked, fields, RUNS[name], seed, Path(directory) / f"{name}_{seed}")
                found[name].append(compared(name, curve, plain))
    for name, each in found.items():
        if shares := [pair for pair in each if pair]:
            steps, tokens = (statistics.mean(column) for column in zip(*shares, strict=True))
            print(
                f"{name}: {len(shares)} of {len(each)} seeds got there, at steps × {steps:.2f}, tokens × {tokens:.2f}"
            )


if __name__ == "__main__":
    main()
