"""Supervised fine-tuning from a recipe.

    accelerate launch --config_file accelerate_configs/zero2.yaml src/sft.py recipes/qwen_math_sft.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import claim
from posttrain.models.source import check_model
from posttrain.recipe.options import SftOptions, StrategyOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:] if argv is None else argv, "sft")
    options = recipe.build(SftOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    benchmarks = []
    if options.eval_benchmarks:
        benchmarks = load_benchmarks(options.eval_benchmarks, Path(options.data_dir), options.eval_questions)
    hardware = read_hardware()
    output_dir = Path(recipe.values["output_dir"])

    from posttrain.methods import sft
    from posttrain.training import lifecycle, stopping

    identity = lifecycle.run_identity(recipe, manifest, hardware)
    record = claim(output_dir, identity)
    if record and record["finished"]:
        lifecycle.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, rows, model.
    arguments = sft.build_arguments(recipe, hardware)
    tokenizer = lifecycle.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), arguments.eos_token
    )
    rows = sft.load_rows(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = sft.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, benchmarks)
    stopping.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)

    # 3. Train from the last whole checkpoint, or from the start.
    resumed_from = lifecycle.resume_point(output_dir)
    dataset = sft.describe_dataset(options, rows, manifest)
    details = lifecycle.run_details(recipe, hardware, trainer, options, dataset)
    details["eos_token"] = tokenizer.eos_token if options.append_eos else None
    record = lifecycle.start_or_continue(output_dir, record, identity, details, resumed_from)
    started = time.perf_counter()
    trained = lifecycle.trained_already(trainer, resumed_from)
    if trained is None:
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)

    # 4. The final checkpoint, then the record that says it is whole.
    result = lifecycle.run_result(trainer, time.perf_counter() - started)
    lifecycle.save_final(trainer, output_dir, record, result, trained)
    lifecycle.tell(sft.summary(output_dir, result))


if __name__ == "__main__":
    run_script(main)
