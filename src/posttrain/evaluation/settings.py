"""One checkpoint on one benchmark: ask as trained, sample, grade, count."""

from typing import Any

from posttrain import lineage
from posttrain.data.benchmarks import Benchmark
from posttrain.data.prompts import render_prompt
from posttrain.errors import PosttrainError
from posttrain.evaluation.results import SCHEMA_VERSION
from posttrain.generation.sample import Decoding
from posttrain.generation.samplers import Sampler
from posttrain.grading import grader
from posttrain.models.loading import Checkpoint
from posttrain.recipe.sampling_options import EvalOptions


def samples_per_question(options: EvalOptions, benchmark: Benchmark) -> int:
    """The recipe's, else one where greedy and the benchmark's own k where sampled."""
    return options.num_samples or (benchmark.k if options.temperature else 1)


def asked_line(options: EvalOptions, benchmarks: list[Benchmark], prompts: list[str]) -> str:
    """What is asked, and how: `1,000 answers on tiny_1step, …, prompt chat, greedy, at most 96 tokens each`."""
    n = sum(len(benchmark.rows) * samples_per_question(options, benchmark) for benchmark in benchmarks)
    drawn = f"temperature {options.temperature}, top_p {options.top_p}" if options.temperature else "greedy"
    return (
        f"{n:,} answers on {', '.join(benchmark.name for benchmark in benchmarks)}; prompt "
        f"{', '.join(dict.fromkeys(prompts))}, {drawn}, at most {options.max_new_tokens} tokens each, grader "
        f"{options.grader}"
    )


def evaluation_settings(
    benchmark: Benchmark,
    checkpoint: dict[str, Any],
    prompt: dict[str, str],
    decoding: Decoding,
    options: EvalOptions,
    sampler: Sampler,
) -> dict[str, Any]:
    """Everything needed to get the number again; two results of equal settings are one result."""
    return {
        "schema": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "data_sha256": benchmark.sha256,
        "limit": benchmark.limit,
        "expected_samples": len(benchmark.rows) * samples_per_question(options, benchmark),
        "checkpoint": checkpoint,
        "grader": {"name": options.grader, "version": grader.VERSION},
        "prompt": prompt,
        "decoding": {**decoding.as_record(), "num_samples": samples_per_question(options, benchmark)},
        "backend": sampler.backend,
        "packages": lineage.package_versions(),
    }


def render_questions(
    benchmark: Benchmark, prompt: str, checkpoint: Checkpoint, max_new_tokens: int
) -> tuple[list[str], list[list[int]]]:
    """Prompts as text and as ids; raises where a prompt and its completion would not fit the model's positions."""
    texts = [render_prompt(prompt, row["prompt"], checkpoint.tokenizer) for row in benchmark.rows]
    ids = checkpoint.tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids))
    positions = checkpoint.positions
    if longest + max_new_tokens > positions:
        raise PosttrainError(
            f"{benchmark.name}: the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but "
            f"the model's max_position_embeddings is {positions}; lower max_new_tokens"
        )
    return texts, ids
