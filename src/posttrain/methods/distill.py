"""Distillation on the dataset's answers, or on the student's own. `src/distill.py` is the order of events."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer, ModelConfig, SFTConfig
from trl.models.utils import prepare_deepspeed

from posttrain.data.encode import load_tokenizer
from posttrain.data.manifest import split_path
from posttrain.data.prompts import render_prompt
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.methods import distill_pieces, sft
from posttrain.methods.sft import RecipeTrainer, Rows
from posttrain.models import loading, packed_attention, trainable
from posttrain.models.labelled_head import targets
from posttrain.recipe.options import DistillOptions, StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.losses import DistillationLoss
from posttrain.training.repeat_sampler import EpochRepeatSampler
from posttrain.training.run import run_arguments


class VocabularyError(PosttrainError):
    """A teacher whose token ids do not mean what the student's mean."""


class OfflineDistiller(RecipeTrainer):
    """RecipeTrainer whose loss is the divergence from a frozen teacher, mixed with cross entropy.

    The teacher sees the same batch, packed rows with their boundaries too.
    """

    def __init__(self, teacher: PreTrainedModel, distillation: DistillationLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation = distillation
        self.teacher = (
            prepare_deepspeed(teacher, self.accelerator)
            if self.is_deepspeed_enabled
            else self.accelerator.prepare_model(teacher, evaluation_mode=True)
        ).eval()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss per token of all processes' batches, as SFTTrainer counts them."""
        labels, batch = inputs["labels"], {k: v for k, v in inputs.items() if k != "labels"}
        mode, unwrap = "train" if model.training else "eval", self.accelerator.unwrap_model
        logged = self.is_logged_step() or not model.training
        total, sums, outputs = distill_pieces.distill(
            unwrap(model), lambda: model(**batch, use_cache=False), unwrap(self.teacher),
            lambda: self.teacher(**batch, use_cache=False), labels, self.distillation, logged,
        )  # fmt: skip
        n = targets(labels).numel()
        names = ("divergence", "cross_entropy", *(("mean_token_accuracy", "entropy") if logged and n else ()))
        for name, value in zip(names, (sums / max(1, n)).tolist(), strict=False):
            self._metrics[mode][name].append(value)
        loss = total / (max(1, n) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # that DDP divides by again
        return (loss, outputs) if return_outputs else loss


class OnPolicyDistiller(WholeRun, DistillationTrainer):
    """DistillationTrainer on prompts rendered as evaluation renders them, whose order a resumed run repeats."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """A rendered prompt gets no further special tokens."""
        return self.processing_class(prompts, add_special_tokens=False)["input_ids"], None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        return EpochRepeatSampler.like(super()._get_train_sampler(dataset))


def build_arguments(recipe: Recipe, options: DistillOptions, hardware: Hardware) -> SFTConfig | DistillationConfig:
    """TRL's arguments for the way of distilling that the recipe goes."""
    return (
        run_arguments(recipe, hardware, DistillationConfig)
        if options.on_policy
        else sft.build_arguments(recipe, hardware)
    )


def load_rows(
    options: DistillOptions, manifest: dict[str, Any], arguments: Any, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Prompts for the student to continue on policy, else the dataset's answers as SFT reads them."""
    if options.on_policy:
        return load_prompts(options, manifest, tokenizer)
    return sft.load_rows(options, manifest, arguments, tokenizer)


def build_trainer(
    recipe: Recipe, options: DistillOptions, arguments: Any, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> "OfflineDistiller | OnPolicyDistiller":  # fmt: skip
    """The trainer with student, teacher, adapter and callbacks."""
    build = build_on_policy if options.on_policy else build_offline
    return build(recipe, options, arguments, hardware, tokenizer, rows)


def load_teacher(
    options: DistillOptions, model: ModelConfig, hardware: Hardware, student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:  # fmt: skip
    """The frozen teacher in the student's dtype; raises VocabularyError where its token ids mean something else."""
    name = options.teacher_model_name_or_path
    theirs = load_tokenizer(name, options.teacher_model_revision, None)
    config = ModelConfig(model_name_or_path=name, model_revision=options.teacher_model_revision, dtype=model.dtype)
    teacher = trainable.load_model(config, StrategyOptions(), hardware, seed=0).requires_grad_(False)
    check_vocabularies(tokenizer, theirs, vocabulary_size(student), vocabulary_size(teacher), name)
    return teacher


def vocabulary_size(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


def check_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_size: int, teacher_size: int, name: str
) -> None:
    """Raise VocabularyError unless both tokenizers give every token the same id and both models know all of them.

    The models' own sizes may differ: Qwen2.5 pads 151,665 tokens to 151,936 or 152,064 rows, which no token uses.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if different:
        token = different[0]
        raise VocabularyError(
            f"{name}: {len(different)} tokens differ from the student's, first {token!r}: id {theirs.get(token)} "
            f"there, {ours.get(token)} here; a teacher must share the tokenizer"
        )
    if (largest := max(ours.values())) >= min(student_size, teacher_size):
        raise VocabularyError(
            f"{name}: token id {largest} is beyond a vocabulary of {min(student_size, teacher_size)} rows"
        )


def build_offline(
    recipe: Recipe, options: DistillOptions, arguments: SFTConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> OfflineDistiller:  # fmt: skip
    """The trainer with student, teacher, adapter and callbacks."""
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    student = trainable.load_model(model_config, chosen, hardware, arguments.seed, options.random_init)
    trainable.prepare(student, tokenizer, chosen, hardware, recipe.path, arguments.max_length)
    if arguments.packing:
        packed_attention.prove_packing(student, hardware.path or recipe.path, arguments.device)
    teacher = load_teacher(options, model_config, hardware, student, tokenizer)
    trainable.check_context(teacher, arguments.max_length, options.teacher_model_name_or_path)
    if options.append_eos:
        loading.set_generation_end(student, tokenizer)
    prepare_trackers(arguments.report_to, Path(arguments.output_dir))
    trainer = OfflineDistiller(
        teacher=teacher,
        distillation=DistillationLoss(options.kd_temperature, options.kd_alpha),
        model=student,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        processing_class=tokenizer,
        peft_config=trainable.adapter_config(model_config, chosen),
    )
    trainer.add_callback(MetricsFile(Path(arguments.output_dir), trainer.window))
    return trainer


def load_prompts(options: DistillOptions, manifest: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The train split's questions as text that the student continues."""
    path = split_path(Path(options.dataset_name), manifest, "train")
    rows = by_content(read_parquet(path, QUESTIONS[:2]), options.num_train_examples)
    prompts = [{"id": row["id"], "prompt": render_prompt(options.prompt, row["prompt"], tokenizer)} for row in rows]
    return Rows(Dataset.from_list(prompts), None, {"train": len(prompts)}, {})


def build_on_policy(
    recipe: Recipe, options: DistillOptions, arguments: DistillationConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> OnPolicyDistiller:  # fmt: skip
    """The trainer with student, teacher, adapter and callbacks. A teacher padded further loses its unused rows."""
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    student = trainable.load_model(model_config, chosen, hardware, arguments.seed, options.random_init)
    trainable.prepare(student, tokenizer, chosen, hardware, recipe.path)
    teacher = load_teacher(options, model_config, hardware, student, tokenizer)
    if vocabulary_size(teacher) > vocabulary_size(student):
        teacher.resize_token_embeddings(vocabulary_size(student))
    loading.set_generation_end(student, tokenizer)
    prepare_trackers(arguments.report_to, Path(arguments.output_dir))
    trainer = OnPolicyDistiller(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=rows.train,
        processing_class=tokenizer,
        peft_config=trainable.adapter_config(model_config, chosen),
    )
    trainer.add_callback(MetricsFile(Path(arguments.output_dir), trainer.window))
    return trainer
