"""Benchmarks while a model trains: a fixed part of each, asked and graded by the code of evaluation.

The figures are metrics of the trainer's own evaluation, `eval_<benchmark>/accuracy` and so on, so that
`metric_for_best_model` and early stopping take them as they take `eval_loss`; `mean/accuracy` is the benchmarks' mean.
"""

from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from posttrain.data.benchmarks import Benchmark
from posttrain.data.prompts import declared_prompt, render_prompt
from posttrain.evaluation.published_graders import make_grader
from posttrain.evaluation.samples import grade_samples
from posttrain.evaluation.scoring import compute_metrics
from posttrain.generation.sample import Decoding, Sample
from posttrain.generation.vllm.server_sampler import ServerSampler


class BenchmarkEvaluation(TrainerCallback):
    """Greedy accuracy on `benchmarks` at every evaluation; `server` is a vLLM server that is sent the weights first."""

    def __init__(
        self, trainer: Any, benchmarks: list[Benchmark], prompt: str, max_new_tokens: int, server: str | None
    ) -> None:
        self.trainer, self.benchmarks, self.prompt, self.server = trainer, benchmarks, prompt, server
        tokenizer = trainer.processing_class
        self.decoding = Decoding(max_new_tokens, 0.0, 1.0, 0, (tokenizer.eos_token_id,), declared_prompt(prompt).stop)
        self.texts = [render_prompt(prompt, row["prompt"], tokenizer) for b in benchmarks for row in b.rows]
        self.prompts = tokenizer(self.texts, add_special_tokens=False)["input_ids"]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Add the figures to the evaluation's metrics, on every process alike, and log them."""
        samples = self._answers()
        figures = [self._grade(samples) if state.is_world_process_zero else None]
        broadcast_object_list(figures, from_process=0)
        metrics |= figures[0]
        self.trainer.log(dict(figures[0]))

    def _answers(self) -> list[Sample]:
        if self.server is None:
            return self.trainer.complete(self.prompts, self.decoding)
        from posttrain.generation.vllm.send_weights import send_weights  # needs vLLM

        samples: list[Sample] = []
        with self.trainer.generating() as model:
            if self.trainer.accelerator.is_main_process:
                tokenizer, name = self.trainer.processing_class, f"step {self.trainer.state.global_step}"
                context = max(map(len, self.prompts)) + self.decoding.max_new_tokens
                served = send_weights(self.server, name, model, tokenizer, self.texts, context)
                sampler = ServerSampler(self.server, served, tokenizer, self.trainer.args.per_device_eval_batch_size)
                samples = list(sampler.sample(self.prompts, self.decoding))
        return sorted(gather_object(samples), key=lambda sample: sample.index)

    def _grade(self, samples: list[Sample]) -> dict[str, float]:
        """Accuracy with its interval, format, truncation and length of each benchmark; the mean accuracy of all."""
        figures, first = {}, 0
        for benchmark in self.benchmarks:
            n = len(benchmark.rows)
            own = [Sample(s.index - first, s.text, s.tokens, s.finish_reason) for s in samples[first : first + n]]
            with make_grader("posttrain", "box", answer_tolerance=benchmark.answer_tolerance) as grader:
                lines = grade_samples(benchmark.rows, self.texts[first : first + n], own, grader, self.prompt)
            found = compute_metrics(lines)
            figures |= {
                f"eval_{benchmark.name}/accuracy": found["accuracy"]["value"],
                f"eval_{benchmark.name}/accuracy_low": found["accuracy"]["low"],
                f"eval_{benchmark.name}/accuracy_high": found["accuracy"]["high"],
                f"eval_{benchmark.name}/format_rate": found["format_rate"],
                f"eval_{benchmark.name}/truncation_rate": found["truncation_rate"],
                f"eval_{benchmark.name}/tokens": found["tokens"]["all"]["mean"],
            }
            first += n
        accuracies = [figures[f"eval_{benchmark.name}/accuracy"] for benchmark in self.benchmarks]
        return figures | {"eval_mean/accuracy": sum(accuracies) / len(accuracies)}
