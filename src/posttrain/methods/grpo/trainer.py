"""TRL's GRPOTrainer with one grader, little padding, seconds by phase, and its completions on record."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isnan
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from posttrain.generation.sample import Decoding, Sample
from posttrain.generation.slots import SlotEngine
from posttrain.generation.vllm import canary, server
from posttrain.generation.vllm.adapter import send_adapter
from posttrain.grading.formats import in_form
from posttrain.grading.grader import Grade, Grader, Verdict
from posttrain.methods.grpo.dynamic_sampling import ChosenQuestions
from posttrain.methods.grpo.micro_batches import SILENT, micro_batches, note_silent, only_advantages, real_positions
from posttrain.methods.grpo.undecided import Judged, groups_with_signal, judged, leave_out
from posttrain.training.base_trainer import Phases, WholeRun
from posttrain.training.callbacks import ContinuedFile
from posttrain.training.repeat_sampler import EpochRepeatSampler

COMPLETIONS_FILE = "completions.jsonl"
ADAPTER_DIRECTORY = "adapter_of_server"  # of the output directory
FORMS = ("box", "tags")  # of posttrain.grading.formats
TRUNCATED = "completions/clipped_ratio"  # TRL's name
PHASES = ("generation", "sync", "reward")  # timed by themselves; what is left of a step is the update


class GrpoTrainer(WholeRun, GRPOTrainer):
    """GRPOTrainer whose rows hold `prompt` as text, `answer` and `id`.

    `subtract_mean=False` trains on bare rewards instead of advantages (CS336's no_baseline).
    """

    keeps_buffers = False  # generation and update need other ones: where all were kept, a run grew

    def __init__(
        self, grader: Grader, subtract_mean: bool = True, canary_tolerance: float = 0.1, lora_sync: str = "merged",
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self.grader, self.subtract_mean, self.canary_tolerance = grader, subtract_mean, canary_tolerance
        self.phases, self.lora_sync = Phases(*PHASES), lora_sync
        self.rewards = self.signal = torch.empty(0)  # of the last generation, all processes
        self.judged = Judged(self.rewards, self.rewards, self.rewards)
        self.questions: ChosenQuestions | None = None  # chooses what is asked, where the recipe wants that
        super().__init__(**kwargs)
        self.completions = ContinuedFile(Path(self.args.output_dir) / COMPLETIONS_FILE)
        self.add_callback(self.completions)
        self.only_advantages = only_advantages(self)
        self.num_completions_to_print = 0  # none on the console, where TRL would print them; the file holds them

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.like(super()._get_train_sampler(dataset))

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Ids as evaluation makes them: a rendered prompt gets no further special tokens."""
        return self.processing_class(prompts, add_special_tokens=False)["input_ids"], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, multimodal_fields: dict[str, Any], num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:  # fmt: skip
        """vLLM as TRL drives it; without vLLM the training model itself, in slots rather than by `generate`."""
        if self.use_vllm:
            self.sync_weights()
            with self.phases.timed("generation"), self.server_answers():
                completed = super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
                if self.questions:
                    self.questions.completions_are_there()
            return completed
        with self.phases.timed("generation"):
            return self._complete_in_slots(prompt_ids), None

    def _complete_in_slots(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        seed = int(torch.randint(2**62, ()))  # from the generator that a checkpoint saves
        with self.generating() as model:
            engine = SlotEngine(model, self.args.per_device_eval_batch_size)
            completed = dict(
                engine.complete(
                    list(enumerate(prompt_ids)), self.max_completion_length,
                    lambda ids: ids[-1] in self.eos_token_ids, self.temperature, seed=seed,
                )
            )  # fmt: skip
        return [completed[i] for i in range(len(prompt_ids))]

    def sync_weights(self) -> None:
        """Send the weights to vLLM where it has older ones, and prove that they arrived."""
        if self.state.global_step == self._last_loaded_step:
            return
        if self.questions:
            with self.phases.timed("generation"), self.server_answers():
                self.questions.before_new_weights()
        with self.phases.timed("sync"), self.server_answers():
            self.send_weights()
            self._last_loaded_step = self.state.global_step
            if self.vllm_mode == "server":
                self._check_freshness()

    def send_weights(self) -> None:
        """Whole weights, an adapter merged into them, or the adapter alone."""
        if self.lora_sync == "merged":
            self.vllm_generation.sync_weights()
        elif self.accelerator.is_main_process:
            client, model = self.vllm_generation.vllm_client, self.accelerator.unwrap_model(self.model)
            send_adapter(client, model, Path(self.args.output_dir) / ADAPTER_DIRECTORY)

    def _check_freshness(self) -> None:
        """Hold the server's log-probabilities of fixed tokens against the trainer's own; raises StaleWeightsError."""
        sequences = canary.sequences(self.train_dataset["prompt"], self.processing_class)
        client = self.vllm_generation.vllm_client if self.accelerator.is_main_process else None
        with self.generating() as model:
            mean, largest = canary.measured(model, client, sequences)
        self._metrics["train"]["canary/mean"].append(mean)
        self._metrics["train"]["canary/max"].append(largest)
        canary.check(mean, self.canary_tolerance, f"weights of step {self.state.global_step}")

    def server_answers(self) -> AbstractContextManager[None]:
        """Turn what TRL's client raises when the server is gone into one line, in the process that asks it."""
        if self.vllm_mode != "server" or not self.accelerator.is_main_process:
            return nullcontext()
        return server.failure_named(self.state.global_step + 1, Path(self.args.output_dir))

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The model with its whole weights in evaluation mode, and as it was afterwards."""
        whole = unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        )
        with whole as model, self._dist.summon_full_params(self.model_wrapped, recurse=False):
            training = model.training
            model.eval()
            try:
                yield model
            finally:
                model.train(training)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[str], completions: list[str], completion_ids: list[list[int]]
    ) -> torch.Tensor:
        """Grade once, and hand the grades to every reward function. (completions of all processes, functions)"""
        truncated = [self.is_truncated(ids, text) for ids, text in zip(completion_ids, completions, strict=True)]
        with self.phases.timed("reward"):
            grades = self.grader.grade([row["answer"] for row in inputs], completions, truncated)
            rows = [
                {**row, "grade": grade, "truncated": cut, "max_completion_length": self.max_completion_length}
                for row, grade, cut in zip(inputs, grades, truncated, strict=True)
            ]
            rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids)
        self._note_verdicts(grades, completions, truncated)
        self._log_completion_extra("verdict", [grade.verdict.value for grade in grades])
        self.judged = judged(grades, completion_ids, self.accelerator)
        rewards[self.judged.undecided] = torch.nan  # TRL takes such a row out of its group, with an advantage of 0
        self.rewards = rewards
        return rewards

    def is_truncated(self, ids: list[int], text: str) -> bool:
        """Whether the budget cut a completion off. TRL takes any end but an end token for that, a stop string too."""
        stops = (self.args.generation_kwargs or {}).get("stop") or []
        return (
            len(ids) >= self.max_completion_length
            and ids[-1] not in self.eos_token_ids
            and not text.endswith(tuple([stops] if isinstance(stops, str) else stops))
        )

    def _note_verdicts(self, grades: list[Grade], completions: list[str], truncated: list[bool]) -> None:
        """Shares of all processes' completions by verdict, of those in each format, and of those cut off."""
        counts = [sum(g.verdict == verdict for g in grades) for verdict in Verdict]
        counts += [*(sum(in_form(form, text) for text in completions) for form in FORMS), sum(truncated)]
        counts.append(len(completions))
        total = self.accelerator.gather(torch.tensor([counts], device=self.accelerator.device)).sum(0).tolist()
        names = [*(f"verdict/{verdict}" for verdict in Verdict), *(f"format/{form}" for form in FORMS), TRUNCATED]
        self._metrics["train"][TRUNCATED].pop()  # TRL's
        for name, count in zip(names, total[:-1], strict=True):
            self._metrics["train"][name].append(count / total[-1])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        rank, n = self.accelerator.process_index, len(inputs)
        own, weights = slice(rank * n, (rank + 1) * n), self.reward_weights.to(self.rewards.device)
        if not self.subtract_mean:
            bare = (self.rewards * weights).nansum(dim=1)
            scored["advantages"] = bare[own]
            self._logs["advantages"].clear()
            self._logs["advantages"].extend(bare.tolist())
        leave_out(scored, self.judged.undecided[own], self.accelerator)
        figures, summed = self._metrics["train"], self.multi_objective_aggregation == "sum_then_normalize"
        self.signal = groups_with_signal(self.rewards, weights, self.num_generations, summed)
        flat = 1 - self.signal.float().mean().item()
        figures["frac_reward_zero_std"][-1] = flat  # TRL's takes a group without a verdict for one with a signal
        figures["undecided"].append(float(self.judged.undecided.sum()))
        figures["unrewarded"].append(float(self.rewards.isnan().all(1).sum()))
        mismatch = figures.get("sampling/sampling_logp_difference/mean")
        if mismatch and not self.staleness:  # an update may move them further; those weights were checked when sent
            canary.check(mismatch[-1], self.canary_tolerance, f"completions of step {self.state.global_step + 1}")
        figures["effective_prompts"].append((1 - flat) * len(self.rewards) / self.num_generations)
        if self.accelerator.is_main_process:
            self.completions.append(self._completion_lines())
        return scored

    @property
    def staleness(self) -> int:
        """Updates between the weights that sampled the completions at hand and those that train on them."""
        return self.questions.staleness if self.questions else 0

    def _completion_lines(self) -> list[dict[str, Any]]:
        """The generation just scored, at the end of TRL's `_logs`. `step` is the one that will train on it."""
        logs, bound = self._logs, self.args.num_completions_to_print
        first = len(logs["prompt"]) - len(self.rewards)
        return [
            {
                "step": self.state.global_step + 1,
                "weights_step": self.state.global_step - self.staleness,
                "prompt": logs["prompt"][i],
                "completion": logs["completion"][i],
                "verdict": logs["extra"]["verdict"][i],
                "rewards": {n: None if isnan(v[i]) else v[i] for n, v in logs["rewards"].items()},
                "advantage": logs["advantages"][i],
            }
            for i in range(first, len(logs["prompt"]))
            if bound is None or i - first < bound
        ]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's buffer of one generation, cut into micro-batches of similar length instead of random ones."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._step % generate_every == 0 or self._buffered_inputs is None:
            chosen = self.questions
            scored = chosen.generation() if chosen else self._generate_and_score_completions(generation_batch)
            accumulated = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
            batches = micro_batches(scored, self.args.steps_per_generation, accumulated, self.only_advantages)
            silent = note_silent(batches, accumulated, self.accelerator) if self.only_advantages else 0
            self._metrics["train"]["silent_completions"].append(float(silent))
            self._metrics["train"]["real_positions"].append(real_positions(batches))
            self._buffered_inputs = batches
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> torch.Tensor:
        """TRL's; without a forward pass where no completion has an advantage, as loss and gradient are 0 then."""
        if inputs.get(SILENT):
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return super().compute_loss(model, inputs, *arguments, **keywords)

    def save_beside(self, checkpoint: Path) -> None:
        if self.questions:
            self.questions.save(checkpoint)

    def restore_beside(self, checkpoint: Path) -> None:
        if self.questions:
            self.questions.restore(checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add seconds per step by phase; `update` is what the others leave."""
        if "loss" in logs and (steps := self.state.global_step - self.window.step_before):
            logs |= self.phases.close(steps, self.window.seconds(), "update")
        super().log(logs, start_time)

    def answer_greedily(self, prompts: list[list[int]]) -> list[Sample]:
        """One greedy completion per prompt with the current weights, in order; every process gets all of them."""
        if self.use_vllm and self.vllm_mode == "server":
            return self._server_answers_greedily(prompts)
        decoding = Decoding(self.max_completion_length, 0.0, 1.0, 0, tuple(self.eos_token_ids))
        return self.complete(prompts, decoding)

    def _server_answers_greedily(self, prompts: list[list[int]]) -> list[Sample]:
        self.sync_weights()
        found, stop = [None], self.args.generation_kwargs or {}
        if self.accelerator.is_main_process:
            with self.server_answers():
                found[0] = self.vllm_generation.vllm_client.generate(
                    prompts, temperature=0.0, max_tokens=self.max_completion_length, generation_kwargs=stop
                )["completion_ids"]
        broadcast_object_list(found, from_process=0)
        texts = self.processing_class.batch_decode(found[0], skip_special_tokens=True)
        return [
            Sample(i, text, len(ids), "length" if self.is_truncated(ids, text) else "stop")
            for i, (ids, text) in enumerate(zip(found[0], texts, strict=True))
        ]
