"""Evaluation of one checkpoint on one or more benchmarks.

    python src/eval.py recipes/eval_greedy.yaml --model outputs/tiny_sft/final --benchmarks tiny_1step,tiny_2step

A finished benchmark is not evaluated again; --help lists the fields.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.console import Progress, header, say
from posttrain.data.benchmarks import Benchmark, load_benchmarks
from posttrain.errors import check_writable, run_script
from posttrain.evaluation.results import Result
from posttrain.evaluation.samples import GradeAhead, grade_samples
from posttrain.generation.sample import Decoding, Sample
from posttrain.grading.grader import Grader
from posttrain.models.source import check_model, evaluation_name
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import EvalOptions

if TYPE_CHECKING:
    from posttrain.generation.samplers import Sampler


def main() -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:], "eval")
    options = recipe.build(EvalOptions)
    check_model(options.model)
    benchmarks = load_benchmarks(options.benchmarks, Path(options.data_dir), options.limit)
    output_dir = Path(options.output_dir or f"evals/{evaluation_name(options.model)}")
    check_writable(output_dir)
    say(f"eval {options.model} → {output_dir}")

    from posttrain.data.prompts import declared_prompt, prompt_hash
    from posttrain.evaluation import results, rope_policy, settings
    from posttrain.evaluation.published_graders import make_grader
    from posttrain.generation import open_sampler
    from posttrain.locks import lock
    from posttrain.models import loading

    # 2. Everything about the questions is known before weights are loaded, once for all benchmarks.
    checkpoint = loading.read_checkpoint(options.model)
    rope = rope_policy.settle(options.rope, checkpoint, options.dtype)
    wanted = loading.choose_prompt(options.prompt, options.model, checkpoint.tokenizer)
    prompts = [benchmark.prompt if wanted == "benchmark" else wanted for benchmark in benchmarks]
    questions = [
        settings.render_questions(benchmark, prompt, checkpoint, options.max_new_tokens)
        for benchmark, prompt in zip(benchmarks, prompts, strict=True)
    ]
    stops = loading.stop_ids(checkpoint)
    described = loading.describe_checkpoint(checkpoint) | {"rope_choice": asdict(rope)}

    # 3. Each benchmark: what is finished stays, what is not is done whole.
    texts = [text for rendered, _ in questions for text in rendered]
    finished = []
    with open_sampler.open_sampler(checkpoint, options, rope.overrides, texts) as sampler:
        say(header({"asked": settings.asked_line(options, benchmarks, prompts), **sampler.machine()}))
        for benchmark, prompt, (rendered, ids) in zip(benchmarks, prompts, questions, strict=True):
            asked = declared_prompt(prompt)
            decoding = Decoding(
                options.max_new_tokens, options.temperature, options.top_p, options.seed, stops, asked.stop
            )
            named = {"name": prompt, "hash": prompt_hash(rendered[0]), "form": asked.form}
            setting = settings.evaluation_settings(benchmark, described, named, decoding, options, sampler)
            lock(output_dir / benchmark.name)
            result = Result(output_dir / benchmark.name, setting)
            metrics = result.metrics()
            if metrics is None:
                repeated = ids * setting["decoding"]["num_samples"]
                with make_grader(options.grader, asked.form) as grader:
                    samples = answer_and_grade(benchmark, repeated, decoding, sampler, result, grader)
                    metrics = result.finish(grade_samples(benchmark.rows, rendered, samples, grader, prompt))
            finished.append(metrics)
    say(f"{results.table(finished)}\n→ {output_dir}")


def answer_and_grade(
    benchmark: Benchmark, prompts: list[list[int]], decoding: Decoding, sampler: "Sampler", result: Result,
    grader: Grader,
) -> list[Sample]:  # fmt: skip
    """A sample of every prompt, those kept by an earlier session included; each is graded while others are sampled."""
    samples = result.sampled()
    progress, done = Progress(benchmark.name, "answers", len(prompts), len(samples)), {s.index for s in samples}
    with GradeAhead(grader, benchmark.rows) as ahead:
        for sample in progress.over(sampler.sample(prompts, decoding, done, progress.count)):
            samples.append(sample)
            result.keep(sample)
            ahead.submit(sample)
        ahead.finish()
    return samples


if __name__ == "__main__":
    run_script(main)
