"""Supervised fine-tuning: rows, trainer and record of one run. `src/sft.py` is the order of events."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import ModelConfig, SFTConfig, SFTTrainer

from posttrain.data.benchmarks import Benchmark
from posttrain.data.encode import Encoding, load_split
from posttrain.data.manifest import split_path
from posttrain.data.packing import pack
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.hardware import Hardware
from posttrain.models import loading, packed_attention, trainable
from posttrain.models.labelled_head import labelled_only, predicting, targets
from posttrain.recipe.options import SftOptions, StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.benchmark_callback import BenchmarkEvaluation
from posttrain.training.callbacks import MetricsFile, SampleGenerations, prepare_trackers
from posttrain.training.losses import SftLoss
from posttrain.training.run import run_arguments

METRIC_TOKENS = 256  # logits converted at once for the token metrics
FUSED_HEAD_DEVICES = ("cuda", "xpu")  # where TRL's fused head is a Triton kernel; elsewhere it costs 1.2 to 3 steps


class RecipeTrainer(WholeRun, SFTTrainer):
    """SFTTrainer for rows that `posttrain.data.encode` has tokenised."""

    def __init__(self, **kwargs: Any) -> None:
        # TRL warns of its own way with label smoothing, which runs the model twice, once for its metrics alone.
        warnings.filterwarnings("ignore", "`label_smoothing_factor` is deprecated", FutureWarning)
        super().__init__(**kwargs)
        self.label_smoother = None
        # A mixture of experts adds to the model's own loss.
        self.labelled_head = self.accelerator.device.type not in FUSED_HEAD_DEVICES and not self.aux_loss_enabled
        if self.args.loss_type == "nll" and (self.args.label_smoothing_factor or self.labelled_head):
            self.compute_loss_func = self.labelled_loss

    def labelled_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Cross entropy of one forward pass in float32, smoothed where the recipe asks for it. labels: (B, T)"""
        n = targets(labels).numel() if num_items_in_batch is None else num_items_in_batch
        total = SftLoss(self.args.label_smoothing_factor, "sum")(labelled_logits(outputs, labels), targets(labels))
        return total / torch.as_tensor(n).clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; on devices without its Triton kernel a cross entropy equal to the model's own to 1e-6.

        That one puts labelled positions alone through the head. There, and with label smoothing, TRL's per-token
        metrics are computed on steps that are logged, not on all.
        """
        fused = inputs["input_ids"].device.type in FUSED_HEAD_DEVICES and self.compute_loss_func is None
        if self.args.loss_type != "nll" or fused:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs, labels = {**inputs, "use_cache": False}, inputs["labels"]  # Trainer takes them out of what it is given
        unwrapped = self.accelerator.unwrap_model(model)
        with labelled_only(unwrapped, labels) if self.labelled_head else nullcontext():
            loss, outputs = Trainer.compute_loss(
                self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if self.is_logged_step() or not model.training:
            logits = labelled_logits(outputs, labels).detach()
            self._add_token_metrics(logits, targets(labels), "train" if model.training else "eval")
        return (loss, outputs) if return_outputs else loss

    def is_logged_step(self) -> bool:
        """Whether the step under way will be logged."""
        return (self.state.global_step + 1) % max(1, int(self.args.logging_steps)) == 0

    def _add_token_metrics(self, logits: torch.Tensor, labels: torch.Tensor, mode: str) -> None:
        """Token accuracy and entropy over completion tokens. logits: (N, V)    labels: (N,)"""
        n = labels.numel()
        correct = entropy = 0.0
        # In pieces: a float32 copy of all logits would be the largest tensor of the step.
        for piece, wanted in zip(logits.split(METRIC_TOKENS), labels.split(METRIC_TOKENS), strict=True) if n else ():
            correct += (piece.argmax(-1) == wanted).sum().item()
            log_probs = piece.float().log_softmax(-1)
            entropy -= (log_probs.exp() * log_probs).sum().item()
        if n:
            self._metrics[mode]["mean_token_accuracy"].append(correct / n)
            self._metrics[mode]["entropy"].append(entropy / n)


def labelled_logits(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The (N, V) logits that predict labels, of a forward pass on them alone or on all positions. labels: (B, T)"""
    logits = outputs.logits
    return logits if logits.dim() == 2 else logits[predicting(labels)]


def build_arguments(recipe: Recipe, hardware: Hardware) -> SFTConfig:
    """TRL's arguments for rows that come tokenised from posttrain.data.encode."""
    return run_arguments(
        recipe,
        hardware,
        SFTConfig,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all" if recipe.values.get("packing") else "non_padding",
    )


@dataclass(frozen=True)
class Rows:
    """Tokenised splits, packed where the recipe says so, and what became of the rows."""

    train: Dataset
    validation: Dataset | None
    used: dict[str, int]
    dropped_too_long: dict[str, int]


def load_rows(
    options: SftOptions, manifest: dict[str, Any], arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Tokenise, lint and pack the train split, and the validation split where the recipe evaluates."""
    eos = tokenizer.eos_token if options.append_eos else None
    encoding = Encoding(options.prompt, eos, arguments.max_length, options.too_long)
    evaluates = arguments.eval_strategy != "no"
    splits, used, dropped = {}, {}, {}
    for split in ("train", "validation") if evaluates else ("train",):
        limit = options.num_train_examples if split == "train" else None
        path = split_path(Path(options.dataset_name), manifest, split)
        dataset, dropped[split] = load_split(path, tokenizer, encoding, limit)
        used[split] = len(dataset)
        if arguments.packing:
            dataset = pack(dataset, arguments.max_length)
        splits[split] = dataset.with_format("numpy")  # collates ten times faster than Python lists
    return Rows(splits["train"], splits.get("validation"), used, dropped)


def build_trainer(
    recipe: Recipe, options: SftOptions, arguments: SFTConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows, benchmarks: list[Benchmark],
) -> RecipeTrainer:  # fmt: skip
    """The trainer with its model, adapter and callbacks."""
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    model = trainable.load_model(model_config, chosen, hardware, arguments.seed, options.random_init)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path, arguments.max_length)
    if arguments.packing:
        packed_attention.prove_packing(model, hardware.path or recipe.path, arguments.device)
    if options.append_eos:
        loading.set_generation_end(model, tokenizer)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        processing_class=tokenizer,
        peft_config=trainable.adapter_config(model_config, chosen),
    )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    if benchmarks:
        tokens, server = options.eval_max_new_tokens, options.eval_server
        trainer.add_callback(BenchmarkEvaluation(trainer, benchmarks, options.prompt, tokens, server))
    if options.sample_generations:
        path = Path(options.dataset_name) / "validation.parquet"
        sample = by_content(read_parquet(path, QUESTIONS[:2]), options.sample_generations)
        trainer.add_callback(SampleGenerations(trainer, output_dir, sample, options.prompt))
    return trainer
