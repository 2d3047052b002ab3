"""Sample candidates for the questions of a dataset from one checkpoint, and verify them.

    python src/sample.py outputs/tiny_ei/round_1/sample.yaml

The same command continues at the first question that is not whole yet. --help lists the fields; src/expert_iteration.py
writes such a recipe for every round.
"""

import sys
from pathlib import Path

from posttrain.console import Progress, header, say
from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import QUESTIONS, read_parquet
from posttrain.errors import run_script
from posttrain.models.source import check_model
from posttrain.pipelines.rollouts import RolloutFile, draw_questions
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import SampleOptions


def main() -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    options = read_recipe(sys.argv[1:], "sample").build(SampleOptions)
    check_model(options.model_name_or_path)
    dataset, output_dir = Path(options.dataset_name), Path(options.output_dir)
    manifest = check_dataset(dataset)
    rows = read_parquet(split_path(dataset, manifest, "train"), QUESTIONS)
    questions = draw_questions(rows, options.num_questions, options.seed)
    say(f"sample {options.model_name_or_path} → {output_dir}")

    from posttrain.locks import lock
    from posttrain.pipelines import sampling_stage

    # 2. One question after another, each kept as soon as all its candidates are verified.
    with sampling_stage.open_stage(options, questions, manifest) as stage:
        say(header({"asked": sampling_stage.asked_line(options, len(questions)), **stage.sampler.machine()}))
        lock(output_dir)
        file = RolloutFile(output_dir, stage.settings)
        metrics = file.metrics()
        if metrics is None:
            done = file.done()
            progress = Progress("sampling", "questions", len(questions), len(done))
            for rollout in progress.over(stage.rollouts(done, progress.count)):
                file.keep(rollout)
            metrics = file.finish(questions)
    say(
        f"{output_dir}: {metrics['solved']} of {metrics['questions']} questions solved, "
        f"{metrics['correct_rate']:.1%} of {metrics['candidates']} candidates correct"
    )


if __name__ == "__main__":
    run_script(main)
