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
from posttrain.memory_options import MemoryOptions
from posttrain.memory_overrides import translate
from posttrain.model_source import check_model
from posttrain.options import StrategyOptions
from posttrain.recipe import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before a model loads.
    recipe = read_recipe(translate(list(sys.argv[1:] if argv is None else argv)), "memory_sft")
    options = recipe.build(MemoryOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    hardware = read_hardware()
    output_dir = Path(recipe.values["output_dir"])

    from posttrain import memory_sft, strategy, training

    memory_sft.check_options(options, hardware)
    manifest = memory_sft.files_manifest(options)
    identity = training.run_identity(recipe, manifest, hardware)
    record = claim(output_dir, identity)
    if record and record["finished"]:
        training.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, bank, rows, model with its memory.
    arguments = memory_sft.build_arguments(recipe, hardware)
    tokenizer = training.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), arguments.eos_token
    )
    bank = memory_sft.read_bank(options, tokenizer)
    rows = memory_sft.load_rows(options, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = memory_sft.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, bank)
    strategy.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)

    # 3. Train from the last whole checkpoint, or from the start.
    resumed_from = training.resume_point(output_dir)
    dataset = memory_sft.describe_dataset(options, rows, manifest)
    details = training.run_details(recipe, hardware, trainer, options, dataset)
    details["eos_token"] = tokenizer.eos_token if options.append_eos else None
    record = training.start_or_continue(output_dir, record, identity, details, resumed_from)
    started = time.perf_counter()
    trained = training.trained_already(trainer, resumed_from)
    if trained is None:
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)

    # 4. The memory, then the record that says it is whole.
    result = training.run_result(trainer, time.perf_counter() - started)
    training.save_final(trainer, output_dir, record, result, trained)
    training.tell(memory_sft.summary(output_dir, result))


if __name__ == "__main__":
    run_script(main)
