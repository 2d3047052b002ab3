"""Sampling and verifying question by question: what `src/sample.py` and `src/rejection_sft.py` share."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import lineage
from posttrain.console import warn
from posttrain.data.prompts import declared_prompt, render_prompt
from posttrain.errors import PosttrainError
from posttrain.generation.open_sampler import local_sampler, open_server
from posttrain.generation.sample import Decoding, MeasuredSample, Sample, Tick, unheard
from posttrain.generation.samplers import HfSampler, Sampler, StretchSampler
from posttrain.generation.share import Work
from posttrain.generation.stretches import cut
from posttrain.grading import grader as grading
from posttrain.grading.grader import Grader
from posttrain.models import loading
from posttrain.pipelines import likelihood
from posttrain.pipelines.rollouts import Question, Rollout, verify
from posttrain.recipe.sampling_options import SampleOptions

SomeSample = TypeVar("SomeSample", bound=Sample)
ADVICE = "shorten --max_new_tokens, or ask less at once (--batch_size, --max-samples 25, --num-candidates 2)"


@dataclass(frozen=True)
class Piece:
    """Questions that one process answers whole: the number of each, and its prompt."""

    questions: list[tuple[int, list[int]]]
    candidates: int  # of every question
    decoding: Decoding


@dataclass(frozen=True)
class Answered:
    """All samples of a question in the order of their index, and log-probability and entropy of each."""

    number: int
    samples: list[Sample]
    measured: list[tuple[float, float]]


@dataclass(frozen=True)
class SamplingStage:
    """What samples, with the questions it is asked. `settings` say everything that decides the samples.

    `model` measures what a server sampled; without a server the sampler does so itself.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    decoding: Decoding
    questions: list[Question]
    prompts: list[list[int]]
    num_candidates: int
    settings: dict[str, Any]

    def rollouts(self, done: AbstractSet[str] = frozenset(), tick: Tick = unheard) -> Iterator[Rollout]:
        """Questions that are not in `done`, each as soon as its last candidate is there; `tick` is told of tokens."""
        whole = {number for number, question in enumerate(self.questions) if question.id in done}
        ask = self._ask_here if isinstance(self.sampler, StretchSampler) else self._ask_server
        with Grader() as grader:
            for answered in ask(whole, tick):
                if answered.number not in whole:
                    rollout = verify(self.questions[answered.number], answered.samples, grader)
                    yield likelihood.with_means(rollout, answered.measured)

    def _ask_here(self, done: AbstractSet[int], tick: Tick) -> Iterator[Answered]:
        """A stretch of questions that is not wholly done is answered again whole, as in evaluation."""
        n, sampler = self.num_candidates, self.sampler
        assert isinstance(sampler, StretchSampler)
        lengths = [len(prompt) for prompt in self.prompts for _ in range(n)]  # a question's candidates stand together
        stretches = [[place // n for place in stretch[::n]] for stretch in cut(lengths, sampler.batch_size, n)]
        pieces = [
            Piece([(number, self.prompts[number]) for number in stretch], n, self.decoding)
            for stretch in stretches
            if not done.issuperset(stretch)
        ]
        yield from sampler.over(answer, pieces, tick)

    def _ask_server(self, done: AbstractSet[int], tick: Tick) -> Iterator[Answered]:
        n, stop = self.num_candidates, self.decoding.stop
        assert self.model is not None
        prompts = [prompt for prompt in self.prompts for _ in range(n)]
        indices = {number * n + candidate for number in done for candidate in range(n)}
        for number, samples in whole_questions(self.sampler.sample(prompts, self.decoding, indices, tick), n):
            means = likelihood.means(samples, self.prompts[number], self.model, self.tokenizer, stop)
            yield Answered(number, samples, means)


def answer(sampler: HfSampler, piece: Piece, tick: Tick) -> Iterator[Answered]:
    """The questions of a piece, each as soon as its candidates are there."""
    n = piece.candidates
    asked = [(number * n + candidate, prompt) for number, prompt in piece.questions for candidate in range(n)]
    for number, samples in whole_questions(complete(sampler, asked, piece.decoding, tick), n):
        yield Answered(number, list(samples), [(sample.logprob, sample.entropy) for sample in samples])


def whole_questions(samples: Iterable[SomeSample], n: int) -> Iterator[tuple[int, list[SomeSample]]]:
    """Number and samples of each question whose `n` samples have come."""
    waiting: dict[int, list[SomeSample]] = {}
    for sample in samples:
        number = sample.index // n
        found = waiting.setdefault(number, [])
        found.append(sample)
        if len(found) == n:
            yield number, sorted(waiting.pop(number), key=lambda one: one.index)


def complete(
    sampler: HfSampler, asked: list[tuple[int, list[int]]], decoding: Decoding, tick: Tick
) -> Iterator[MeasuredSample]:
    """A sample of everything asked; where memory runs out, the rest is sampled in batches of half the size."""
    sampled: set[int] = set()
    while True:
        left = [(index, prompt) for index, prompt in asked if index not in sampled]
        try:
            for sample in sampler.complete_measured(left, tick, decoding):
                sampled.add(sample.index)
                yield sample
            return
        except torch.cuda.OutOfMemoryError as error:
            if sampler.batch_size < 2:
                raise PosttrainError(f"out of memory at one completion at once ({error}); {ADVICE}") from error
        warn(f"out of memory at {sampler.batch_size} completions at once, going on with half; {ADVICE}")
        torch.cuda.empty_cache()
        sampler.halve()


def asked_line(options: SampleOptions, n: int) -> str:
    """What is asked, and how."""
    return (
        f"{options.num_candidates} answers to each of {n:,} questions of {options.dataset_name}; prompt "
        f"{options.prompt}, temperature {options.temperature}, top_p {options.top_p}, at most "
        f"{options.max_new_tokens} tokens each"
    )


@contextmanager
def open_stage(options: SampleOptions, questions: list[Question], manifest: dict[str, Any]) -> Iterator[SamplingStage]:
    """The checkpoint, loaded for as long as the block lasts, and the questions, rendered.

    Raises PosttrainError where a prompt and a candidate would not fit the model.
    """
    checkpoint, n = loading.read_checkpoint(options.model_name_or_path), options.num_candidates
    tokenizer = checkpoint.tokenizer
    texts = [render_prompt(options.prompt, question.prompt, tokenizer) for question in questions]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest, positions = max(map(len, prompts)), checkpoint.positions
    if longest + options.max_new_tokens > positions:
        raise PosttrainError(
            f"{options.dataset_name}: the longest prompt has {longest} tokens and max_new_tokens is "
            f"{options.max_new_tokens}, but the model's max_position_embeddings is {positions}; lower max_new_tokens"
        )
    stops, stop = loading.stop_ids(checkpoint), declared_prompt(options.prompt).stop
    decoding = Decoding(options.max_new_tokens, options.temperature, options.top_p, options.seed, stops, stop)
    settings = {
        "dataset": {"path": options.dataset_name, "files": lineage.digest(manifest["files"])},
        "questions": lineage.digest([question.id for question in questions]),
        "checkpoint": loading.describe_checkpoint(checkpoint),
        "prompt": options.prompt,
        "decoding": {**decoding.as_record(), "num_candidates": n},
        "grader": {"name": "posttrain", "version": grading.VERSION},
        "packages": lineage.package_versions(),
    }
    if options.server is not None:
        model, server = open_server(checkpoint, options, texts, longest + options.max_new_tokens)
        settings["backend"] = server.backend
        yield SamplingStage(model, tokenizer, server, decoding, questions, prompts, n, settings)
        return
    work = Work([len(prompts) * n], longest, options.max_new_tokens, n)
    with local_sampler(checkpoint, "auto", options.batch_size, options.num_workers, work) as sampler:
        settings["backend"] = sampler.backend
        yield SamplingStage(None, tokenizer, sampler, decoding, questions, prompts, n, settings)
