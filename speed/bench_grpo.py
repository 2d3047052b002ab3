"""Measure where the seconds of a GRPO step go, beside TRL's trainer with the same settings.

    make bench-grpo                                             # after make demo, from outputs/tiny_sft_early/final
    make bench-grpo ARGS="--model … --use_vllm true --vllm_mode server …"    # with a server running: make serve
    make bench-grpo ARGS="--beside ahead --use_vllm true …"     # the same with generation_ahead: 1 instead of TRL's

Both train the recipe's first steps on the same prompts with the same seed, ours with its verifier, TRL's with its
accuracy_reward. Printed: CPU and wall seconds per step of each in interleaved rounds, their ratios, and how ours divide
(wall). A step of `ahead` is also held against the longer one of ours' two parts, generation with reward and update with
sync, which no overlap makes shorter. Fields of the recipe can be overridden.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from posttrain.data.encode import load_tokenizer
from posttrain.data.manifest import check_dataset
from posttrain.grading.grader import Grader
from posttrain.hardware import read_hardware
from posttrain.methods.grpo import build
from posttrain.methods.grpo.custom_rewards import load_reward
from posttrain.methods.grpo.trainer import PHASES, GrpoTrainer
from posttrain.models import loading, trainable
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import Recipe, read_recipe


def trl_reward(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """TRL's own reward, which takes messages and a gold as LaTeX."""
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    return accuracy_reward(messages, [f"${gold}$" for gold in answer])


def seconds_per_step(trainer: GRPOTrainer) -> tuple[float, float]:
    """CPU and wall seconds of a step, the first left out."""
    marks: list[tuple[float, float]] = []
    step = trainer.training_step

    def marked(*arguments: Any, **keywords: Any) -> Any:
        if trainer._step % trainer.args.gradient_accumulation_steps == 0:
            marks.append((time.process_time(), time.perf_counter()))
        return step(*arguments, **keywords)

    trainer.training_step = marked
    trainer.train()
    steps = len(marks) - 1
    return (time.process_time() - marks[1][0]) / steps, (time.perf_counter() - marks[1][1]) / steps


def build_trainer(kind: type[GRPOTrainer], recipe: Recipe, grader: Grader, directory: str) -> GRPOTrainer:
    """A trainer of the recipe without probe, guard and checkpoints."""
    options, hardware = recipe.build(GrpoOptions), read_hardware()
    arguments: GRPOConfig = build.build_arguments(recipe, hardware)
    arguments.output_dir, arguments.save_strategy, arguments.logging_steps = directory, "no", 1
    tokenizer = load_tokenizer(recipe.values["model_name_or_path"], None, options.eos_token)
    prompts = build.load_prompts(options, check_dataset(Path(options.dataset_name)), tokenizer)
    model = trainable.load_model(
        recipe.build(build.ModelConfig), recipe.build(StrategyOptions), hardware, arguments.seed
    )
    loading.set_generation_end(model, tokenizer)
    ours = {"grader": grader} if kind is GrpoTrainer else {}
    with build.server_connection(recipe, arguments, hardware, tokenizer, prompts):
        trainer = kind(
            model=model, args=arguments, train_dataset=prompts.train, processing_class=tokenizer,
            reward_funcs=[load_reward("accuracy") if ours else trl_reward], **ours,
        )  # fmt: skip
    if ours and build.chooses_questions(options):
        trainer.questions = build.choose_questions(trainer, options, prompts)
        trainer.add_callback(trainer.questions)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/tiny_grpo.yaml")
    parser.add_argument("--model", default="outputs/tiny_sft_early/final", help="the checkpoint to start from")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", choices=("trl", "ahead"), default="trl", help="what ours is compared with")
    asked, fields = parser.parse_known_args()
    if not Path(asked.model).is_dir():
        sys.exit(
            f"error: {asked.model}: no such directory; `make demo` makes it, or name one: ARGS='--model DIRECTORY'"
        )
    overrides = ["--model_name_or_path", asked.model, "--max_steps", str(asked.steps), "--guard_steps", "0", *fields]
    recipe = read_recipe([asked.recipe, *overrides], "grpo")
    kind, other = GRPOTrainer, recipe
    if asked.beside == "ahead":
        kind, other = GrpoTrainer, read_recipe([asked.recipe, *overrides, "--generation_ahead", "1"], "grpo")
    ratios, overlaps = [], []
    for number in range(asked.rounds):
        with Grader() as grader, tempfile.TemporaryDirectory() as directory:
            trainer = build_trainer(GrpoTrainer, recipe, grader, directory)
            mine = seconds_per_step(trainer)
            theirs = seconds_per_step(build_trainer(kind, other, grader, directory))
        logged = [entry for entry in trainer.state.log_history if "seconds/update" in entry][1:]
        ratios.append(tuple(a / b for a, b in zip(mine, theirs, strict=True)))
        split = {phase: statistics.mean(entry[f"seconds/{phase}"] for entry in logged) for phase in (*PHASES, "update")}
        parts = ", ".join(f"{name} {value:.2f}" for name, value in split.items())
        real = statistics.mean(entry["real_positions"] for entry in logged)
        print(f"round {number + 1}: posttrain {mine[0]:.2f} CPU s, {mine[1]:.2f} s a step", end="")
        print(
            f"; {asked.beside} {theirs[0]:.2f}, {theirs[1]:.2f}\n    {parts}; {real:.0%} of positions real", flush=True
        )
        longer = max(split["generation"] + split["reward"], split["update"] + split["sync"])
        overlaps.append(theirs[1] / longer)
    cpu, wall = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratios of ours to {asked.beside}: CPU {cpu:.2f}, wall {wall:.2f}")
    if asked.beside == "ahead":
        print(f"a step of ahead to the longer part of ours: {statistics.median(overlaps):.2f} in the median")


if __name__ == "__main__":
    main()
