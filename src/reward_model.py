"""Train a reward model from preference pairs, for best-of-n.

    accelerate launch --config_file accelerate_configs/cpu.yaml src/reward_model.py recipes/tiny_reward_model.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.console import say
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.models.source import check_model
from posttrain.recipe.options import RewardOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(argv, "reward_model")
    options = recipe.build(RewardOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()

    from posttrain.methods import pairs, reward_model
    from posttrain.training.run import Run

    run = Run(recipe, options, hardware, manifest)
    if run.is_finished():
        return
    arguments, tokenizer = reward_model.build_arguments(recipe, hardware), run.tokenizer()
    rows = pairs.load_pairs(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = reward_model.build_trainer(recipe, options, arguments, hardware, tokenizer, rows)
    result = run.train(trainer, run.describe(rows), callbacks)
    run.close(trainer, result)
    say(run.summary(result, "accuracy"))


if __name__ == "__main__":
    run_script(main)
