"""Run expert iteration: sample, verify, select, fine-tune, evaluate, and again from the new weights.

    POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml python src/expert_iteration.py recipes/tiny_ei.yaml

Every stage is a command that is printed and can be run by hand; its recipe lies in outputs/<run>/round_<n>/. The same
command goes on at the first unfinished stage, down to the sampled question.
"""

import sys
from pathlib import Path

from posttrain import lineage
from posttrain.console import header, say
from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.manifest import check_dataset
from posttrain.errors import run_script
from posttrain.locks import lock
from posttrain.models.source import check_model
from posttrain.pipelines import expert_iteration, round_summary
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import RoundOptions, SampleOptions


def main() -> None:
    # 1. Everything that can be wrong is found before a stage starts.
    recipe = read_recipe(sys.argv[1:], "expert_iteration")
    options, sampling = recipe.build(RoundOptions), recipe.build(SampleOptions)
    check_model(sampling.model_name_or_path, may_be_adapter=False)
    manifest = check_dataset(Path(sampling.dataset_name))
    load_benchmarks(options.benchmarks, Path(options.data_dir), options.limit)
    run = expert_iteration.Rounds(recipe, options, sampling, expert_iteration.accelerate_config())
    identity = expert_iteration.run_identity(recipe, manifest)
    record = lineage.claim(run.output_dir, identity)
    lock(run.output_dir)
    record = record or lineage.start_record(
        run.output_dir, identity, {"recipe": {"path": recipe.path, "text": recipe.text}}
    )

    say(f"expert_iteration {recipe.path} → {run.output_dir}\n{header(expert_iteration.facts(run))}")

    # 2. Round 0 evaluates the start; each further round samples, selects, trains and evaluates.
    records = []
    for number in range(options.num_rounds + 1):
        records.append(expert_iteration.run_round(run, number))
        round_summary.write_summary(run.output_dir, records)

    # 3. The last weights under the name that every run has, then the record that says the run is whole.
    expert_iteration.finish(run, record, records)
    say(f"{round_summary.table(records)}\n→ {run.output_dir}, weights {run.output_dir / 'final'}")


if __name__ == "__main__":
    run_script(main)
