"""Evaluate one checkpoint on one or more benchmarks.

    python src/eval.py recipes/eval_greedy.yaml --model outputs/tiny_sft/final --benchmarks tiny_1step,tiny_2step

A finished benchmark is not evaluated again; --help lists the fields.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.console import Progress, header, say
from posttrain.data.benchmarks import load_benchmarks
from posttrain.errors import check_writable, run_script
from posttrain.evaluation.published_graders import make_grader
from posttrain.evaluation.results import Result
from posttrain.evaluation.samples import GradeAhead, grade_samples
from posttrain.generation.sample import Sample
from posttrain.grading.grader import Grader
from posttrain.locks import lock
from posttrain.models import run_card
from posttrain.models.source import check_model, evaluation_name
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import EvalOptions

if TYPE_CHECKING:
    from posttrain.evaluation.settings import Asked
    from posttrain.generation.samplers import Sampler


def main() -> None:
    # Everything that can be wrong is found before torch is imported.
    options = read_recipe(None, "eval").build(EvalOptions)
    check_model(options.model)
    benchmarks = load_benchmarks(options.benchmarks, Path(options.data_dir), options.limit)
    output_dir = Path(options.output_dir or f"evals/{evaluation_name(options.model)}")
    check_writable(output_dir)
    say(f"eval {options.model} → {output_dir}")

    from posttrain.evaluation import results, rope_policy, settings
    from posttrain.generation import open_sampler
    from posttrain.models import loading

    # Everything about the questions is known before weights are loaded, once for all benchmarks.
    checkpoint = loading.read_checkpoint(options.model)
    rope = rope_policy.settle(options.rope, checkpoint, options.dtype)
    asked = settings.ask(benchmarks, options, checkpoint)
    described = loading.describe_checkpoint(checkpoint) | {"rope_choice": asdict(rope)}
    texts, work = [text for one in asked for text in one.texts], settings.work(options, asked)
    with open_sampler.open_sampler(checkpoint, options, rope.overrides, texts, work) as sampler:
        say(header({"asked": settings.asked_line(options, asked), **sampler.machine()}))
        wanted = [settings.evaluation_settings(one, described, options, sampler) for one in asked]
        finished = [evaluate(*one, sampler, output_dir) for one in zip(asked, wanted, strict=True)]
    say(results.table(finished))
    run_card.update(Path(options.model), finished)


def evaluate(asked: "Asked", settings: dict[str, Any], sampler: "Sampler", output_dir: Path) -> dict[str, Any]:
    """The metrics of a benchmark, which is answered and graded whole unless it is finished."""
    directory, rows = output_dir / asked.benchmark.name, asked.benchmark.rows
    lock(directory)
    result = Result(directory, settings)
    if (metrics := result.metrics()) is not None:
        return metrics
    tolerance = asked.benchmark.answer_tolerance
    with make_grader(settings["grader"]["name"], asked.form, answer_tolerance=tolerance) as grader:
        prompts = asked.ids * settings["decoding"]["num_samples"]
        samples = answer_and_grade(asked, prompts, sampler, result, grader)
        return result.finish(grade_samples(rows, asked.texts, samples, grader, asked.prompt))


def answer_and_grade(
    asked: "Asked", prompts: list[list[int]], sampler: "Sampler", result: Result, grader: Grader
) -> list[Sample]:
    """A sample of every prompt, those kept by an earlier session included; each is graded while others are sampled."""
    samples, benchmark = result.sampled(), asked.benchmark
    progress, done = Progress(benchmark.name, "answers", len(prompts), len(samples)), {s.index for s in samples}
    with GradeAhead(grader, benchmark.rows) as ahead:
        for sample in progress.over(sampler.sample(prompts, asked.decoding, done, progress.count)):
            samples.append(sample)
            result.keep(sample)
            ahead.submit(sample)
        ahead.finish()
    return samples


if __name__ == "__main__":
    run_script(main)
