"""Train a frozen model to read an explicit memory, from a recipe.

    accelerate launch --config_file accelerate_configs/ddp.yaml src/memory_sft.py recipes/qwen3_4b_omcq_memory.yaml

Any field of the recipe can be overridden by `--field value`, or as the original has it by `group.key=value`; `--help`
lists them. The same command resumes the run.
"""

import sys
from collections.abc import Sequence
from typing import Any

from posttrain.console import say
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.memory.command_line import translate
from posttrain.models.source import check_model
from posttrain.recipe.memory_options import MemoryOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # Everything that can be wrong is found before a model loads.
    recipe = read_recipe(translate(list(sys.argv[1:] if argv is None else argv)), "memory_sft")
    options = recipe.build(MemoryOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    hardware = read_hardware()

    from posttrain.memory import build
    from posttrain.training.run import Run

    build.check_options(options, hardware)
    manifest = build.files_manifest(options)
    run = Run(recipe, options, hardware, manifest)
    if run.is_finished():
        return
    arguments, tokenizer = build.build_arguments(recipe, hardware), run.tokenizer()
    bank = build.read_bank(options, tokenizer)
    rows = build.load_rows(options, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = build.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, bank)
    result = run.train(trainer, build.describe_dataset(options, rows, manifest), callbacks)
    run.close(trainer, result)
    say(run.summary(result))


if __name__ == "__main__":
    run_script(main)
