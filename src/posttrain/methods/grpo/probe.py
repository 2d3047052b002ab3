"""The signal probe: what the starting weights earn under this recipe, before any step is spent on it.

Most failed runs of this kind show it at once: completions cut off by the budget, prompts whose completions all earn the
same, a format that no completion has.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from posttrain import atomic
from posttrain.console import say
from posttrain.data.rows import by_content
from posttrain.errors import PosttrainError
from posttrain.grading.grader import Verdict
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.training.callbacks import forget_after

PROBE_FILE = "probe.json"
PROMPTS = 32  # at least so many, in whole generations
FIGURES = {  # of the trainer's: what the table calls it
    "completions/clipped_ratio": "truncated",
    "format/box": "with a box",
    "format/tags": "in the r1_zero form",
    f"verdict/{Verdict.UNPARSED}": "no answer found",
    f"verdict/{Verdict.CORRECT}": "correct",
    f"verdict/{Verdict.TIMEOUT}": "verifier timed out",
    f"verdict/{Verdict.ERROR}": "verifier failed",
    "frac_reward_zero_std": "prompts without signal",
}


class SignalProbe(TrainerCallback):
    """Scores some prompts through the trainer's own generation when a run starts; raises where they give no signal."""

    def __init__(self, trainer: Any, options: GrpoOptions, output_dir: Path) -> None:
        self.trainer, self.options, self.path = trainer, options, output_dir / PROBE_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.options.probe == "off" or state.global_step > 0:
            return
        figures = measure(self.trainer)
        refused = refusals(figures, self.options)
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self.path, {**figures, "refusals": refused})
            say("\n".join([table(figures), *refused]))
        if refused and self.options.probe == "refuse":
            raise PosttrainError("; ".join(refused) + " (--probe warn trains all the same)")
        if self.options.probe == "only":
            raise SystemExit(0)


def measure(trainer: Any) -> dict[str, Any]:
    """Figures of at least `PROMPTS` prompts, sampled as training samples them. Leaves no trace in the trainer."""
    args, group = trainer.args, trainer.num_generations
    per_round = args.generation_batch_size // group
    rounds = -(-min(PROMPTS, len(trainer.train_dataset)) // per_round)
    rows = by_content(trainer.train_dataset.to_list(), rounds * per_round)
    rows = [rows[i % len(rows)] for i in range(rounds * per_round)]  # a dataset smaller than one generation repeats
    share, rank = args.generation_batch_size // args.world_size, args.process_index
    trainer.model.train()  # TRL takes the mode for that of its figures
    with torch.random.fork_rng():
        for start in range(0, len(rows), per_round):
            batch = [row for row in rows[start : start + per_round] for _ in range(group)]
            trainer._generate_and_score_completions(batch[rank * share : (rank + 1) * share])
    collected = trainer._metrics["train"]
    figures = {name: mean(collected[name]) for name in (*FIGURES, "reward")}
    figures["tokens"] = sum(collected["completions/mean_length"]) / rounds
    figures |= {"prompts": len(rows), "completions": len(rows) * group, "unrewarded": sum(collected["unrewarded"])}
    golds = [row["answer"] for row in rows]
    graded = trainer.grader.grade(golds, [f"\\boxed{{{gold}}}" for gold in golds], [False] * len(golds))
    figures["gold_unparsed"] = sum(g.verdict != Verdict.CORRECT for g in graded) / len(golds)
    collected.clear()
    if args.process_index == 0:
        forget_after(trainer.completions.path, 0)
    trainer.state.num_input_tokens_seen = 0
    trainer.phases.start()
    trainer.window.open()
    return figures


def mean(values: list[float]) -> float | None:
    """The mean of those that are numbers; None where none is, as of a reward that no completion got."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def refusals(figures: dict[str, Any], options: GrpoOptions) -> list[str]:
    """Why training would not learn from such completions, each with the knob to turn."""
    faults = []
    cut, flat = figures["completions/clipped_ratio"], figures["frac_reward_zero_std"]
    if cut > options.probe_max_truncated:
        faults.append(
            f"probe: {cut:.0%} of the completions fill max_completion_length, at most "
            f"{options.probe_max_truncated:.0%} may (probe_max_truncated): raise max_completion_length, or check that "
            f"the model knows its eos_token"
        )
    if figures["unrewarded"] == figures["completions"]:
        faults.append(
            "probe: no completion got a reward: each function of reward_funcs returned None for all of them, or the "
            "verifier decided none; name a function that applies to these rows, or look at verdict/timeout and "
            "verdict/error"
        )
    elif flat > options.probe_max_zero_variance:
        right = figures[f"verdict/{Verdict.CORRECT}"]
        advice = "take harder questions" if right > 0.5 else "start from an SFT checkpoint, or take easier questions"
        faults.append(
            f"probe: {flat:.0%} of the prompts give no signal, as all their completions earn the same, at most "
            f"{options.probe_max_zero_variance:.0%} may (probe_max_zero_variance); {right:.0%} are correct: {advice}, "
            f"or raise num_generations"
        )
    if figures["gold_unparsed"] > 0:
        faults.append(
            f"probe: {figures['gold_unparsed']:.0%} of the golds are not accepted as their own answer; mend the dataset"
        )
    return faults


def table(figures: dict[str, Any]) -> str:
    """Two lines: what was asked, and the share of every outcome."""
    n, completions, tokens = (figures[name] for name in ("prompts", "completions", "tokens"))
    shares = {**FIGURES, "gold_unparsed": "gold not parsed"}
    outcomes = ", ".join(f"{figures[name]:.1%} {label}" for name, label in shares.items())
    return f"probe: {n:.0f} prompts, {completions:.0f} completions of {tokens:.1f} tokens\n  {outcomes}"
