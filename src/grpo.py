"""GRPO from a recipe, with verified rewards.

    accelerate launch --config_file accelerate_configs/zero2.yaml src/grpo.py recipes/qwen_math_grpo.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
`--probe only` samples with the starting weights, says what they earn, and ends.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import claim
from posttrain.methods.grpo.rewards import describe_rewards
from posttrain.models.source import check_model
from posttrain.recipe.options import GrpoOptions, StrategyOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:] if argv is None else argv, "grpo")
    options = recipe.build(GrpoOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()
    rewards = describe_rewards(options.reward_funcs)
    output_dir = Path(recipe.values["output_dir"])

    from posttrain.grading.grader import Grader
    from posttrain.methods.grpo import build
    from posttrain.training import lifecycle, stopping

    identity = {**lifecycle.run_identity(recipe, manifest, hardware), "reward_files": rewards}
    record = claim(output_dir, identity)
    if record and record["finished"]:
        lifecycle.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, prompts, model.
    arguments = build.build_arguments(recipe, hardware)
    tokenizer = lifecycle.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), options.eos_token
    )
    prompts = build.load_prompts(options, manifest, tokenizer)
    with Grader() as grader:
        with recipe.answers_for_library_errors():
            trainer = build.build_trainer(recipe, options, arguments, hardware, tokenizer, prompts, grader)
        stopping.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)

        if options.probe == "only":
            trainer.train()  # ends with the probe, before the first step

        # 3. Train from the last whole checkpoint, or from the start; the probe comes before the first step.
        resumed_from = lifecycle.resume_point(output_dir)
        dataset = build.describe_dataset(options, prompts, manifest)
        details = lifecycle.run_details(recipe, hardware, trainer, options, dataset)
        details |= {"eos_token": tokenizer.eos_token, "reward_files": rewards}
        record = lifecycle.start_or_continue(output_dir, record, identity, details, resumed_from)
        started = time.perf_counter()
        trained = lifecycle.trained_already(trainer, resumed_from)
        if trained is None:
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)

    # 4. The final checkpoint, then the record that says it is whole.
    result = lifecycle.run_result(trainer, time.perf_counter() - started) | {"guard": build.guard_result(output_dir)}
    lifecycle.save_final(trainer, output_dir, record, result, trained)
    lifecycle.tell(build.summary(output_dir, result))


if __name__ == "__main__":
    run_script(main)
