"""Evaluation of one checkpoint on one or more benchmarks.

    python src/eval.py recipes/eval_greedy.yaml --model outputs/tiny_sft/final --benchmarks tiny_1step,tiny_2step

A finished benchmark is not evaluated again; --help lists the fields.
"""

import sys
from pathlib import Path

from posttrain.benchmarks import load_benchmarks
from posttrain.errors import check_writable, run_script
from posttrain.model_source import check_model, evaluation_name
from posttrain.options import EvalOptions
from posttrain.recipe import read_recipe


def main() -> None:
    # 1. Everything that can be wrong is found before torch is imported.
    recipe = read_recipe(sys.argv[1:], "eval")
    options = recipe.build(EvalOptions)
    check_model(options.model)
    benchmarks = load_benchmarks(options.benchmarks, Path(options.data_dir), options.limit)
    output_dir = Path(options.output_dir or f"evals/{evaluation_name(options.model)}")
    check_writable(output_dir)

    from tqdm import tqdm

    from posttrain import evaluation, results
    from posttrain.graded import grade_samples
    from posttrain.lineage import lock
    from posttrain.prompts import declared_prompt, prompt_hash
    from posttrain.published_graders import make_grader
    from posttrain.sampling import Decoding, HfSampler

    # 2. One load for all benchmarks.
    model, tokenizer = evaluation.load_checkpoint(options)
    prompt = evaluation.choose_prompt(options, tokenizer)
    asked = declared_prompt(prompt)
    sampler = HfSampler(model, tokenizer, options.batch_size)
    stops = evaluation.stop_ids(model, tokenizer)
    decoding = Decoding(options.max_new_tokens, options.temperature, options.top_p, options.seed, stops, asked.stop)
    checkpoint = evaluation.describe_checkpoint(model, options)
    positions = model.config.get_text_config().max_position_embeddings

    # 3. Each benchmark: what is finished stays, what is not is done whole.
    finished = []
    for benchmark in benchmarks:
        texts, ids = evaluation.render_questions(benchmark, prompt, tokenizer, options.max_new_tokens, positions)
        named = {"name": prompt, "hash": prompt_hash(texts[0]), "form": asked.form}
        settings = evaluation.evaluation_settings(benchmark, checkpoint, named, decoding, options, sampler)
        lock(output_dir / benchmark.name)
        result = results.Result(output_dir / benchmark.name, settings)
        metrics = result.metrics()
        if metrics is None:
            samples, prompts = result.sampled(), ids * options.num_samples
            progress = tqdm(total=len(prompts), initial=len(samples), desc=benchmark.name)
            for sample in sampler.sample(prompts, decoding, done={sample.index for sample in samples}):
                samples.append(sample)
                result.keep(sample)
                progress.update()
            with make_grader(options.grader, asked.form) as grader:
                metrics = result.finish(grade_samples(benchmark.rows, texts, samples, grader, prompt))
        finished.append(metrics)
    print(f"{options.model}, prompt {prompt}, grader {options.grader}:\n{results.table(finished)}\n→ {output_dir}")


if __name__ == "__main__":
    run_script(main)
