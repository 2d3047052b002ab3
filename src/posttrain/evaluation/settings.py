"""Describe how one checkpoint is asked on one benchmark, and render its questions."""

from dataclasses import dataclass
from typing import Any

from posttrain import lineage
from posttrain.data.benchmarks import Benchmark
from posttrain.data.prompts import declared_prompt, prompt_hash, render_prompt
from posttrain.errors import PosttrainError
from posttrain.evaluation.results import SCHEMA_VERSION
from posttrain.generation.sample import Decoding
from posttrain.generation.samplers import Sampler
from posttrain.generation.share import Work
from posttrain.grading import grader
from posttrain.models.loading import Checkpoint, choose_prompt, stop_ids
from posttrain.recipe.sampling_options import EvalOptions


@dataclass(frozen=True)
class Asked:
    """A benchmark as it is asked: every question as text and as ids, and how its answers are sampled."""

    benchmark: Benchmark
    prompt: str
    form: str
    texts: list[str]
    ids: list[list[int]]
    decoding: Decoding


def ask(benchmarks: list[Benchmark], options: EvalOptions, checkpoint: Checkpoint) -> list[Asked]:
    """The benchmarks in the prompts of the recipe, those of the checkpoint or their own."""
    wanted, stops = choose_prompt(options.prompt, options.model, checkpoint.tokenizer), stop_ids(checkpoint)
    asked = []
    for benchmark in benchmarks:
        name = benchmark.prompt if wanted == "benchmark" else wanted
        texts, ids = render_questions(benchmark, name, checkpoint, options.max_new_tokens)
        prompt, drawn = declared_prompt(name), (options.temperature, options.top_p, options.seed)
        asked.append(
            Asked(
                benchmark, name, prompt.form, texts, ids, Decoding(options.max_new_tokens, *drawn, stops, prompt.stop)
            )
        )
    return asked


def samples_per_question(options: EvalOptions, benchmark: Benchmark) -> int:
    """The recipe's, else one where greedy and the benchmark's own k where sampled."""
    return options.num_samples or (benchmark.k if options.temperature else 1)


def work(options: EvalOptions, asked: list[Asked]) -> Work:
    """How much the benchmarks ask of a sampler."""
    prompts = [len(one.ids) * samples_per_question(options, one.benchmark) for one in asked]
    return Work(prompts, max(len(ids) for one in asked for ids in one.ids), options.max_new_tokens)


def asked_line(options: EvalOptions, asked: list[Asked]) -> str:
    """What is asked, and how: `1,000 answers on tiny_1step, …, prompt chat, greedy, at most 96 tokens each`."""
    n = sum(len(one.texts) * samples_per_question(options, one.benchmark) for one in asked)
    drawn = f"temperature {options.temperature}, top_p {options.top_p}" if options.temperature else "greedy"
    names = ", ".join(one.benchmark.name for one in asked)
    prompts = ", ".join(dict.fromkeys(one.prompt for one in asked))
    return (
        f"{n:,} answers on {names}; prompt {prompts}, {drawn}, at most {options.max_new_tokens} tokens each, "
        f"grader {options.grader}"
    )


def evaluation_settings(
    asked: Asked, checkpoint: dict[str, Any], options: EvalOptions, sampler: Sampler
) -> dict[str, Any]:
    """Everything needed to get the number again; two results of equal settings are one result."""
    benchmark = asked.benchmark
    return {
        "schema": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "data_sha256": benchmark.sha256,
        "limit": benchmark.limit,
        "expected_samples": len(benchmark.rows) * samples_per_question(options, benchmark),
        "checkpoint": checkpoint,
        "grader": {"name": options.grader, "version": grader.VERSION, **_tolerance(benchmark)},
        "prompt": {"name": asked.prompt, "hash": prompt_hash(asked.texts[0]), "form": asked.form},
        "decoding": {**asked.decoding.as_record(), "num_samples": samples_per_question(options, benchmark)},
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


def _tolerance(benchmark: Benchmark) -> dict[str, Any]:
    return {"answer_tolerance": benchmark.answer_tolerance} if benchmark.answer_tolerance else {}
