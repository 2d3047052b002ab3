"""Train a frozen model to read an explicit memory, from a recipe.

    accelerate launch --config_file accelerate_configs/ddp.yaml src/memory_sft.py recipes/qwen3_4b_omcq_memory.yaml

Any field of the recipe can be overridden by `--field value`, or as the original has it by `group.key=value`; `--help`
lists them. The same command resumes the run.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import claim
from posttrain.memory.command_line import translate
from posttrain.models.source import check_model
from posttrain.recipe.memory_options import MemoryOptions
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before a model loads.
    recipe = read_recipe(translate(list(sys.argv[1:] if argv is None else argv)), "memory_sft")
    options = recipe.build(MemoryOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    hardware = read_hardware()
    output_dir = Path(recipe.values["output_dir"])

    from posttrain.memory import build
    from posttrain.training import lifecycle, stopping

    build.check_options(options, hardware)
    manifest = build.files_manifest(options)
    identity = lifecycle.run_identity(recipe, manifest, hardware)
    record = claim(output_dir, identity)
    if record and record["finished"]:
        lifecycle.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, bank, rows, model with its memory.
    arguments = build.build_arguments(recipe, hardware)
    tokenizer = lifecycle.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), arguments.eos_token
    )
    bank = build.read_bank(options, tokenizer)
    rows = build.load_rows(options, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = build.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, bank)
    stopping.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)

    # 3. Train from the last whole checkpoint, or from the start.
    resumed_from = lifecycle.resume_point(output_dir)
    dataset = build.describe_dataset(options, rows, manifest)
    details = lifecycle.run_details(recipe, hardware, trainer, options, dataset)
    details["eos_token"] = tokenizer.eos_token if options.append_eos else None
    record = lifecycle.start_or_continue(output_dir, record, identity, details, resumed_from)
    started = time.perf_counter()
    trained = lifecycle.trained_already(trainer, resumed_from)
    if trained is None:
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)

    # 4. The memory, then the record that says it is whole.
    result = lifecycle.run_result(trainer, time.perf_counter() - started)
    lifecycle.save_final(trainer, output_dir, record, result, trained)
    lifecycle.tell(build.summary(output_dir, result))


if __name__ == "__main__":
    run_script(main)
