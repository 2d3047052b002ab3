"""A reward model from preference pairs, for best-of-n.

    accelerate launch --config_file accelerate_configs/cpu.yaml src/reward_model.py recipes/tiny_reward_model.yaml

Any field of the recipe can be overridden by `--field value`; `--help` lists them. The same command resumes the run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.hardware import read_hardware
from posttrain.lineage import claim
from posttrain.models.source import check_model
from posttrain.recipe.options import RewardOptions
from posttrain.recipe.reader import read_recipe


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:] if argv is None else argv, "reward_model")
    options = recipe.build(RewardOptions)
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    manifest = check_dataset(Path(options.dataset_name))
    hardware = read_hardware()
    output_dir = Path(recipe.values["output_dir"])

    from trl import RewardConfig

    from posttrain.methods import pairs, reward_model
    from posttrain.training import lifecycle

    identity = lifecycle.run_identity(recipe, manifest, hardware)
    record = claim(output_dir, identity)
    if record and record["finished"]:
        lifecycle.tell(f"{output_dir}: this run finished at {record['finished']}; nothing to do")
        return

    # 2. Arguments, tokenizer, pairs, model.
    arguments = lifecycle.build_arguments(recipe, hardware, RewardConfig, include_num_input_tokens_seen="non_padding")
    tokenizer = lifecycle.load_tokenizer(
        recipe.values["model_name_or_path"], recipe.values.get("model_revision"), options.eos_token
    )
    rows = pairs.load_pairs(options, manifest, arguments, tokenizer)
    with recipe.answers_for_library_errors():
        trainer = reward_model.build_trainer(recipe, options, arguments, hardware, tokenizer, rows)

    # 3. Train from the last whole checkpoint, or from the start; the final one, and the record that says it is whole.
    dataset = pairs.describe_dataset(options, rows, manifest)
    result = lifecycle.train_to_the_end(trainer, recipe, options, hardware, dataset, identity, record, callbacks)
    lifecycle.tell(lifecycle.summary(output_dir, result, "accuracy"))


if __name__ == "__main__":
    run_script(main)
