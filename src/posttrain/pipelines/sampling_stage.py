"""Sampling and verifying question by question: what `src/sample.py` and `src/rejection_sft.py` share."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import lineage
from posttrain.console import warn
from posttrain.data.prompts import declared_prompt, render_prompt
from posttrain.errors import PosttrainError
from posttrain.generation.open_sampler import load_sampler
from posttrain.generation.sample import Decoding, Sample, Tick, unheard
from posttrain.generation.samplers import HfSampler, Sampler
from posttrain.grading import grader as grading
from posttrain.grading.grader import Grader
from posttrain.models import loading
from posttrain.pipelines import likelihood
from posttrain.pipelines.rollouts import Question, Rollout, verify
from posttrain.recipe.sampling_options import SampleOptions

ADVICE = "shorten --max_new_tokens, or ask less at once (--batch_size, --max-samples 25, --num-candidates 2)"


@dataclass(frozen=True)
class SamplingStage:
    """A loaded model with the questions it is asked. `settings` say everything that decides the samples."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    decoding: Decoding
    questions: list[Question]
    prompts: list[list[int]]
    num_candidates: int
    settings: dict[str, Any]

    def rollouts(self, done: AbstractSet[str] = frozenset(), tick: Tick = unheard) -> Iterator[Rollout]:
        """Questions that are not in `done`, each as soon as its last candidate is there; `tick` is told of tokens."""
        n = self.num_candidates
        prompts = [prompt for prompt in self.prompts for _ in range(n)]  # candidates of a question stand together
        whole = {i * n + j for i, question in enumerate(self.questions) if question.id in done for j in range(n)}
        waiting: dict[int, list[Sample]] = {}
        with Grader() as grader:
            for sample in self._samples(prompts, whole, tick):
                number = sample.index // n
                samples = waiting.setdefault(number, [])
                samples.append(sample)
                if len(samples) == n:
                    rollout = verify(self.questions[number], waiting.pop(number), grader)
                    prompt, stop = self.prompts[number], self.decoding.stop
                    yield likelihood.measure(rollout, prompt, self.model, self.tokenizer, stop)

    def _samples(self, prompts: list[list[int]], done: AbstractSet[int], tick: Tick) -> Iterator[Sample]:
        """Where memory runs out, what is left is sampled in batches of half the size, which is said."""
        sampler, sampled = self.sampler, set(done)
        while True:
            try:
                for sample in sampler.sample(prompts, self.decoding, sampled, tick):
                    sampled.add(sample.index)
                    yield sample
                return
            except torch.cuda.OutOfMemoryError as error:
                batch_size = getattr(sampler, "batch_size", 1)
                if batch_size < 2:
                    raise PosttrainError(f"out of memory at one completion at once ({error}); {ADVICE}") from error
            warn(f"out of memory at {batch_size} completions at once, going on with half; {ADVICE}")
            torch.cuda.empty_cache()
            sampler = HfSampler(self.model, self.tokenizer, batch_size // 2)


def asked_line(options: SampleOptions, n: int) -> str:
    """What is asked, and how."""
    return (
        f"{options.num_candidates} answers to each of {n:,} questions of {options.dataset_name}; prompt "
        f"{options.prompt}, temperature {options.temperature}, top_p {options.top_p}, at most "
        f"{options.max_new_tokens} tokens each"
    )


def prepare(options: SampleOptions, questions: list[Question], manifest: dict[str, Any]) -> SamplingStage:
    """Load the checkpoint and render the questions; raises where a prompt and a candidate would not fit the model."""
    checkpoint = loading.read_checkpoint(options.model_name_or_path)
    tokenizer = checkpoint.tokenizer
    texts = [render_prompt(options.prompt, question.prompt, tokenizer) for question in questions]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest, positions = max(map(len, prompts)), checkpoint.positions
    if longest + options.max_new_tokens > positions:
        raise PosttrainError(
            f"{options.dataset_name}: the longest prompt has {longest} tokens and max_new_tokens is "
            f"{options.max_new_tokens}, but the model's max_position_embeddings is {positions}; lower max_new_tokens"
        )
    model, sampler = load_sampler(checkpoint, options, texts, longest + options.max_new_tokens)
    stops = loading.stop_ids(checkpoint)
    stop = declared_prompt(options.prompt).stop
    decoding = Decoding(options.max_new_tokens, options.temperature, options.top_p, options.seed, stops, stop)
    settings = {
        "dataset": {"path": options.dataset_name, "files": lineage.digest(manifest["files"])},
        "questions": lineage.digest([question.id for question in questions]),
        "checkpoint": loading.describe_checkpoint(checkpoint),
        "prompt": options.prompt,
        "decoding": {**decoding.as_record(), "num_candidates": options.num_candidates},
        "grader": {"name": "posttrain", "version": grading.VERSION},
        "backend": sampler.backend,
        "packages": lineage.package_versions(),
    }
    return SamplingStage(model, tokenizer, sampler, decoding, questions, prompts, options.num_candidates, settings)
