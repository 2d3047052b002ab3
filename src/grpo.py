"""Train by GRPO from a recipe, with verified rewards.

    accelerate launch --config_file accelerate_configs/zero2.yaml src/grpo.py recipes/qwen_math_grpo.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
`--probe only` samples with the starting weights, says what they earn, and ends.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.console import say
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.grading.grader import Grader
from posttrain.hardware import read_hardware
from posttrain.methods.grpo.custom_rewards import describe_rewards
from posttrain.models.source import check_model
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(argv, "grpo")
    options = recipe.build(GrpoOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()
    rewards = describe_rewards(options.reward_funcs)

    from posttrain.methods.grpo import build
    from posttrain.training.run import Run

    run = Run(recipe, options, hardware, manifest, reward_files=rewards)
    if run.is_finished():
        return
    arguments, tokenizer = build.build_arguments(recipe, hardware), run.tokenizer()
    prompts = build.load_prompts(options, manifest, tokenizer)
    with Grader() as grader:
        with recipe.answers_for_library_errors():
            trainer = build.build_trainer(recipe, options, arguments, hardware, tokenizer, prompts, grader)
        if options.probe == "only":
            trainer.train()  # ends with the probe, before the first step
        result = run.train(trainer, build.describe_dataset(options, prompts, manifest), callbacks, reward_files=rewards)
    result |= build.outcome(trainer, run.output_dir)
    run.close(trainer, result)
    say(build.summary(run.output_dir, result))


if __name__ == "__main__":
    run_script(main)
