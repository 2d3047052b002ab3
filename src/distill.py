"""Distil a teacher into a student of the same tokenizer, offline or on policy.

    accelerate launch --config_file accelerate_configs/cpu.yaml src/distill.py recipes/tiny_distill.yaml

`on_policy: true` in the recipe lets the teacher read the student's own samples. Any field can be overridden
by `--field value`; `--help` lists them. The same command resumes the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.console import say
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import fingerprint
from posttrain.models.source import check_model
from posttrain.recipe.options import DistillOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(argv, "distill")
    options = recipe.build(DistillOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    check_model(options.teacher_model_name_or_path, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()

    from posttrain.methods import distill
    from posttrain.training.run import Run

    run = Run(recipe, options, hardware, manifest, teacher_files=fingerprint(options.teacher_model_name_or_path))
    if run.is_finished():
        return
    arguments, tokenizer = distill.build_arguments(recipe, options, hardware), run.tokenizer()
    rows = distill.load_rows(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = distill.build_trainer(recipe, options, arguments, hardware, tokenizer, rows)
    result = run.train(trainer, run.describe(rows), callbacks)
    run.close(trainer, result)
    say(run.summary(result, "mean_token_accuracy"))


if __name__ == "__main__":
    run_script(main)
