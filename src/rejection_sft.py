"""Sample N candidates for each question, keep what the verifier accepts, fine-tune a LoRA on it, and evaluate.

    export POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/single_gpu.yaml        # cpu.yaml without a GPU
    python src/rejection_sft.py recipes/qwen2_0.5b_gsm8k_rejection_lora.yaml --max-samples 5 --num-candidates 2

Flags: --max-samples --num-candidates --epochs --learning-rate --temperature --eval-size --output-dir --checkpoint
--reset-buffer, and any field of the recipe. The same command goes on at the question where it stopped.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

from posttrain import atomic, lineage
from posttrain.console import Progress, header
from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import QUESTIONS, read_parquet
from posttrain.errors import check_writable, run_script
from posttrain.locks import lock
from posttrain.models.source import check_model
from posttrain.pipelines import expert_iteration, rejection_sft
from posttrain.pipelines.rollouts import RolloutFile, draw_questions
from posttrain.pipelines.round_summary import nothing_accepted
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import RoundOptions, SampleOptions


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    argv, switches = rejection_sft.translate(sys.argv[1:])
    run, manifest = read_run(argv)
    identity = expert_iteration.run_identity(run.recipe, manifest)
    check_writable(run.output_dir)
    lock(run.output_dir)  # before anything is removed
    if "--reset-buffer" in switches:
        rejection_sft.reset(run, identity)
    record = lineage.claim(run.output_dir, identity)
    console = rejection_sft.Console(run.output_dir / rejection_sft.STDOUT_FILE)

    console.say("=== Phase 1: Creating Training Run ===")
    record = record or lineage.start_record(run.output_dir, identity, {"recipe": {"path": run.recipe.path}})
    console.say(f"✓ Created training run: {record['run_id']}")
    expert_iteration.run_stage(run.evaluate(0), run.output_dir)
    console.say("=== Phase 2: Populating Rejection Buffer ===")
    entries = populate(run, manifest, console)
    console.say("=== Phase 3: Rejection SFT Training Loop ===")
    if not any(entry["trained"] for entry in entries):
        reason = nothing_accepted(run.directory(1) / "rollouts")
        raise expert_iteration.RoundError(f"nothing was accepted, so there is nothing to train on: {reason}")
    expert_iteration.run_stage(run.select(1), run.output_dir)
    expert_iteration.run_stage(run.train(1), run.output_dir)
    stats = train_report(run, entries, console)
    console.say("=== Phase 4: Final Evaluation ===")
    expert_iteration.run_stage(run.evaluate(1), run.output_dir)
    conclude(run, record, entries, stats, switches, console)


def read_run(argv: list[str]) -> tuple[expert_iteration.Rounds, dict]:
    """The run that the recipe describes, and the manifest of its questions; everything is checked."""
    recipe = read_recipe(argv, "expert_iteration", "rejection_sft")
    options, sampling = recipe.build(RoundOptions), recipe.build(SampleOptions)
    run = expert_iteration.Rounds(recipe, options, sampling, expert_iteration.accelerate_config())
    rejection_sft.check_recipe(run)
    check_model(sampling.model_name_or_path, may_be_adapter=False)
    load_benchmarks(options.benchmarks, Path(options.data_dir), options.limit)
    return run, check_dataset(Path(sampling.dataset_name))


def populate(run: expert_iteration.Rounds, manifest: dict, console: rejection_sft.Console) -> list[dict]:
    """Sample and verify each question that is not in the buffer yet; the buffer's entries."""
    from posttrain.pipelines import sampling_stage

    stage_recipe = run.sample(1)
    options = read_recipe(stage_recipe.command[2:], "sample").build(SampleOptions)
    rows = read_parquet(split_path(Path(options.dataset_name), manifest, "train"), QUESTIONS)
    questions = draw_questions(rows, options.num_questions, options.seed)
    clock = nullcontext() if stage_recipe.is_whole() else expert_iteration.timed(stage_recipe, run.output_dir)
    with clock, sampling_stage.open_stage(options, questions, manifest) as stage:
        file = RolloutFile(Path(options.output_dir), stage.settings)
        done = file.done() if file.metrics() is None else {question.id for question in questions}
        buffer = rejection_sft.Buffer(run, list(file.kept()))
        console.say(header({"asked": sampling_stage.asked_line(options, len(questions)), **stage.sampler.machine()}))
        progress = Progress("sampling", "questions", len(questions), len(done))
        for rollout in progress.over(stage.rollouts(done, progress.count)):
            console.say(f"[{len(buffer.entries) + 1}/{len(questions)}] Processing example...")
            console.say("  Generating candidates...\n  Evaluating candidates...")
            file.keep(rollout)
            entry = buffer.add(rollout)
            console.say(
                f"  Best candidate: score={entry['best_score']:.2f}, is_correct={entry['is_correct']}, "
                f"trained={entry['trained']}"
            )
    if file.metrics() is None:
        file.finish(questions)
    return buffer.entries


def train_report(run: expert_iteration.Rounds, entries: list[dict], console: rejection_sft.Console) -> list[dict]:
    """Evaluate the checkpoint of every epoch and say what it was trained on."""
    stats, checkpoints = [], rejection_sft.epochs(run)
    for epoch, checkpoint in checkpoints:
        stage = rejection_sft.evaluate_epoch(run, epoch, checkpoint)
        expert_iteration.run_stage(stage, run.output_dir)
        stats.append(rejection_sft.epoch_record(run, epoch, rejection_sft.evaluation_record(stage), entries))
        console.say(f"--- Epoch {epoch}/{len(checkpoints)} ---")
        console.say(f"  Trained on {stats[-1]['trained_count']}/{len(entries)} examples")
        console.say(f"  Epoch {epoch}/{len(checkpoints)} accuracy: {stats[-1]['accuracy']:.2%}")
    return stats


def conclude(
    run: expert_iteration.Rounds, record: dict, entries: list[dict], stats: list[dict], switches: set[str],
    console: rejection_sft.Console,
) -> None:  # fmt: skip
    """Write the results, close the run's record, and say what was reached."""
    before, after = (rejection_sft.evaluation_record(run.evaluate(number)) for number in (0, 1))
    if "--checkpoint" in switches:
        console.say(f"  Saving checkpoint... {rejection_sft.keep_checkpoints(run, record['run_id'])}")
    path = run.output_dir / rejection_sft.RESULTS_FILE
    results = {
        "run_id": record["run_id"], "config": {**run.recipe.values, "switches": sorted(switches)},
        "training_metrics": {"initial": before, "epoch_stats": stats},
        "evaluation_metrics": after, "buffer_size": len(entries),
    }  # fmt: skip
    atomic.write_json(path, results)
    accuracies = [{"evaluation": {"all": {"value": entry["accuracy"]}}} for entry in (before, after)]
    expert_iteration.finish(run, record, accuracies)
    console.say(f"Total: {after['total_examples']}\nCorrect: {after['correct']}\nAccuracy: {after['accuracy']:.2%}")
    console.say(f"Before training: {before['accuracy']:.2%} → {path}")


if __name__ == "__main__":
    run_script(main)
