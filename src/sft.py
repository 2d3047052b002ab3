"""Fine-tune a model from a recipe.

    accelerate launch --config_file accelerate_configs/zero2.yaml src/sft.py recipes/qwen_math_sft.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.console import say
from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.models.source import check_model
from posttrain.recipe.options import SftOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(argv, "sft")
    options = recipe.build(SftOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    asked, data_dir = options.eval_benchmarks, Path(options.data_dir)
    benchmarks = load_benchmarks(asked, data_dir, options.eval_questions) if asked else []
    hardware = read_hardware()

    from posttrain.methods import sft
    from posttrain.training.run import Run

    run = Run(recipe, options, hardware, manifest)
    if run.is_finished():
        return
    arguments, tokenizer = sft.build_arguments(recipe, hardware), run.tokenizer()
    rows = sft.load_rows(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = sft.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, benchmarks)
    result = run.train(trainer, run.describe(rows), callbacks)
    run.close(trainer, result)
    say(run.summary(result, "mean_token_accuracy"))


if __name__ == "__main__":
    run_script(main)
