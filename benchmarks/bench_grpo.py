"""Where the seconds of a GRPO step go, beside TRL's trainer with the same settings.

    make bench-grpo ARGS="--model outputs/tiny_sft_early/final"

Both train the recipe's first steps on the same prompts with the same seed, ours with its verifier, TRL's with its
accuracy_reward. Printed: CPU seconds per step of each in interleaved rounds, their ratio, and how ours divide.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from posttrain import grpo, training
from posttrain.grading import Grader
from posttrain.grpo_trainer import GrpoTrainer
from posttrain.hardware import read_hardware
from posttrain.manifest import check_dataset
from posttrain.options import GrpoOptions
from posttrain.recipe import Recipe, read_recipe
from posttrain.rewards import load_reward


def trl_reward(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """TRL's own reward, which takes messages and a gold as LaTeX."""
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    return accuracy_reward(messages, [f"${gold}$" for gold in answer])


def seconds_per_step(trainer: GRPOTrainer) -> float:
    """CPU seconds of a step, the first left out."""
    marks: list[float] = []
    step = trainer.training_step

    def marked(*arguments: Any, **keywords: Any) -> Any:
        if trainer._step % trainer.args.gradient_accumulation_steps == 0:
            marks.append(time.process_time())
        return step(*arguments, **keywords)

    trainer.training_step = marked
    trainer.train()
    return (time.process_time() - marks[1]) / (len(marks) - 1)


def build(kind: type[GRPOTrainer], recipe: Recipe, grader: Grader, directory: str) -> GRPOTrainer:
    """A trainer of the recipe without probe, guard and checkpoints."""
    options, hardware = recipe.build(GrpoOptions), read_hardware()
    arguments: GRPOConfig = grpo.build_arguments(recipe, hardware)
    arguments.output_dir, arguments.save_strategy, arguments.logging_steps = directory, "no", 1
    tokenizer = training.load_tokenizer(recipe.values["model_name_or_path"], None, options.eos_token)
    prompts = grpo.load_prompts(options, check_dataset(Path(options.dataset_name)), tokenizer)
    model = training.load_model(recipe.build(grpo.ModelConfig), hardware, arguments.seed, random_init=False)
    training.set_generation_end(model, tokenizer)
    ours = {"grader": grader} if kind is GrpoTrainer else {}
    return kind(
        model=model, args=arguments, train_dataset=prompts.train, processing_class=tokenizer,
        reward_funcs=[load_reward("accuracy") if ours else trl_reward], **ours,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/tiny_grpo.yaml")
    parser.add_argument("--model", required=True, help="the checkpoint to start from")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    overrides = ["--model_name_or_path", asked.model, "--max_steps", str(asked.steps), "--guard_steps", "0"]
    recipe = read_recipe([asked.recipe, *overrides], "grpo")
    ratios = []
    for number in range(asked.rounds):
        with Grader() as grader, tempfile.TemporaryDirectory() as directory:
            trainer = build(GrpoTrainer, recipe, grader, directory)
            mine = seconds_per_step(trainer)
            theirs = seconds_per_step(build(GRPOTrainer, recipe, grader, directory))
        logged = [entry for entry in trainer.state.log_history if "seconds/update" in entry][1:]
        split = {k: statistics.mean(e[f"seconds/{k}"] for e in logged) for k in ("generation", "reward", "update")}
        real = statistics.mean(entry["real_positions"] for entry in logged)
        ratios.append(mine / theirs)
        parts = ", ".join(f"{name} {value:.2f}" for name, value in split.items())
        own = f"posttrain {mine:.2f} s a step ({parts}; {real:.0%} of positions real)"
        print(f"round {number + 1}: {own}, TRL {theirs:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
