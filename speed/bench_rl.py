"""Measure what GRPO with dynamic sampling saves: steps and sampled tokens to the accuracy of the run without it.

    make bench-rl                          # after make demo, from outputs/tiny_sft_early/final; three seeds, an hour
    make bench-rl ARGS="--model … --dataset … --steps 30 --seeds 1 --runs dynamic"
    make bench-rl ARGS="--runs ahead --use_vllm true --vllm_mode server …"      # with a server running: make serve

For each seed the recipe trains as it is, with `dynamic_sampling: true`, and with `question_sampling: informative`
beside; all from one model, with the same questions of validation asked every few steps, and no guard that would end a
run. What the first run reaches is the mean of its last two evaluations; printed is the step, and the tokens seen, at
which each of the others has a mean of two evaluations as high, as shares of the first run's; last, at how many steps
the mean over seeds of accuracy and reward lies within the 95 % t interval of the first runs' mean (rewards over as many
steps as lie between two evaluations). Fields of the recipe can be overridden.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

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
    "ahead": ["--generation_ahead", "1"],
}


class Watch(Guard):
    """A guard that asks and lets the run go on."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self._ask(state)


@dataclass(frozen=True)
class Curve:
    """What one run reached, by step: greedy accuracy, tokens seen, and the mean reward of the steps up to it."""

    accuracy: dict[int, float]
    tokens: dict[int, int]
    reward: dict[int, float]

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
        with build.server_connection(recipe, arguments, hardware, tokenizer, prompts):
            trainer = build.build_trainer(recipe, chosen, arguments, hardware, tokenizer, prompts, grader)
        watch = Watch(trainer, by_content(held_out, asked.prompts), chosen.prompt, asked.every)
        trainer.add_callback(watch)
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "tokens_seen" in entry]
    tokens = {entry["step"]: entry["tokens_seen"] for entry in logged}
    rewards = {end: [e["reward"] for e in logged if end - asked.every < e["step"] <= end] for end in tokens}
    means = {end: statistics.mean(found) for end, found in rewards.items() if end % asked.every == 0}
    return Curve({line["step"]: line["accuracy"] for line in read_guard(watch.path)}, {0: 0, **tokens}, means)


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


def within(name: str, curves: list[Curve], plain: list[Curve]) -> None:
    """Print at how many steps the mean over seeds lies in the interval of the first runs' mean."""
    for what in ("accuracy", "reward"):
        inside, shown = 0, []
        steps = sorted(getattr(plain[0], what))
        for step in steps:
            values = np.array([getattr(curve, what)[step] for curve in plain])
            mean = statistics.mean(getattr(curve, what)[step] for curve in curves)
            half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            inside += abs(mean - values.mean()) <= half
            shown.append(f"{step}: {mean:.2f} ({values.mean():.2f} ± {half:.2f})")
        print(f"{name}: {what} within the interval at {inside} of {len(steps)} steps; {', '.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/tiny_grpo.yaml")
    parser.add_argument("--model", default="outputs/tiny_sft_early/final", help="the checkpoint to start from")
    parser.add_argument("--dataset", default="data/tiny_math")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=5, help="steps between two evaluations")
    parser.add_argument("--prompts", type=int, default=200, help="questions of an evaluation")
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=["dynamic", "informative"], help="what is held against the recipe"
    )
    asked, fields = parser.parse_known_args()
    for path in (asked.model, asked.dataset):
        if not Path(path).is_dir():
            sys.exit(f"error: {path}: no such directory; `make demo` makes it")
    found: dict[str, list[tuple[float, float] | None]] = {name: [] for name in asked.runs}
    curves: dict[str, list[Curve]] = {name: [] for name in ("plain", *asked.runs)}
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(asked.seeds):
            plain = train(asked, fields, [], seed, Path(directory) / f"plain_{seed}")
            curves["plain"].append(plain)
            print(f"seed {seed}: {plain.accuracy[0]:.1%} → {plain.smooth[plain.last]:.1%} in {plain.last} steps, "
                  f"{plain.tokens[plain.last]:,} tokens", flush=True)  # fmt: skip
            for name in asked.runs:
                curve = train(asked, fields, RUNS[name], seed, Path(directory) / f"{name}_{seed}")
                found[name].append(compared(name, curve, plain))
                curves[name].append(curve)
    for name, each in found.items():
        if shares := [pair for pair in each if pair]:
            steps, tokens = (statistics.mean(column) for column in zip(*shares, strict=True))
            print(
                f"{name}: {len(shares)} of {len(each)} seeds got there, at steps × {steps:.2f}, tokens × {tokens:.2f}"
            )
        if asked.seeds > 1:
            within(name, curves[name], curves["plain"])


if __name__ == "__main__":
    main()
