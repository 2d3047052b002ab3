"""Distillation of a teacher into a student of the same tokenizer, offline or on policy.

    accelerate launch --config_file accelerate_configs/cpu.yaml src/distill.py recipes/tiny_distill.yaml

`on_policy: true` in the recipe lets the teacher read the student's own samples. Any field can be overridden
by `--field value`; `--help` lists them. The same command resumes the run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import claim, fingerprint
from posttrain.models.source import check_model
from posttrain.recipe.options import DistillOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:] if argv is None else argv, "distill")
    options = recipe.build(DistillOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=not options.random_init, may_be_adapter=False)
    check_model(options.teacher_model_name_or_path, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()
    output_dir = Path(recipe.values["output_dir"])

    from trl import DistillationConfig

    from posttrain.methods import distill, pairs, sft
    from posttrain.training import lifecycle

    identity = lifecycle.run_identity(recipe, manifest, hardware)
    identity["teacher_files"] = fingerprint(options.teacher_model_name_or_path)
    record = claim(output_dir, identity)
    if record and record["finished"]:
        lifecycle.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, rows or prompts, student and teacher.
    if options.on_policy:
        arguments = lifecycle.build_arguments(recipe, hardware, DistillationConfig)
    else:
        arguments = sft.build_arguments(recipe, hardware)
    tokenizer = lifecycle.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), recipe.values.get("eos_token")
    )
    with recipe.answers_for_library_errors():
        if options.on_policy:
            rows = distill.load_prompts(options, manifest, tokenizer)
            trainer = distill.build_on_policy(recipe, options, arguments, hardware, tokenizer, rows)
        else:
            rows = sft.load_rows(options, manifest, arguments, tokenizer)
            trainer = distill.build_offline(recipe, options, arguments, hardware, tokenizer, rows)

    # 3. Train from the last whole checkpoint, or from the start; the final one, and the record that says it is whole.
    dataset = pairs.describe_dataset(options, rows, manifest)
    result = lifecycle.train_to_the_end(trainer, recipe, options, hardware, dataset, identity, record, callbacks)
    lifecycle.tell(lifecycle.summary(output_dir, result, "mean_token_accuracy"))


if __name__ == "__main__":
    run_script(main)
