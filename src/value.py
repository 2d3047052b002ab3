"""Train a value head on verified samples: the probability of every prefix of an answer to turn out right.

    accelerate launch --config_file accelerate_configs/cpu.yaml src/value.py recipes/tiny_value.yaml

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
from posttrain.recipe.options import ValueOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(argv, "value")
    options = recipe.build(ValueOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()

    from posttrain.methods import value
    from posttrain.training.run import Run

    run = Run(recipe, options, hardware, manifest)
    if run.is_finished():
        return
    arguments, tokenizer = value.build_arguments(recipe, hardware), run.tokenizer()
    rows = value.load_rows(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = value.build_trainer(recipe, options, arguments, hardware, tokenizer, rows)
    result = run.train(trainer, run.describe(rows), callbacks)
    run.close(trainer, result)
    say(run.summary(result, "explained_variance"))


if __name__ == "__main__":
    run_script(main)
