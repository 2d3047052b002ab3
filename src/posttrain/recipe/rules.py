"""What a recipe may not say and why: renamed keys, keys that belong elsewhere, and ranges."""

import re
from pathlib import Path
from typing import Any

from posttrain.recipe.schema import (
    DISTILLATION_CONFIG,
    DPO_CONFIG,
    GRPO_CONFIG,
    MODEL_CONFIG,
    REWARD_CONFIG,
    SFT_CONFIG,
    VALUE_CONFIG,
    Field,
)

OPTIONS = "posttrain/recipe/options.py"
SAMPLING = "posttrain/recipe/sampling_options.py"
STRATEGY = f"{OPTIONS}:StrategyOptions"
SCHEMAS = {
    "sft": (*MODEL_CONFIG, *SFT_CONFIG, STRATEGY, f"{OPTIONS}:SftOptions"),
    "grpo": (*MODEL_CONFIG, *GRPO_CONFIG, STRATEGY, f"{OPTIONS}:GrpoOptions"),
    "dpo": (*MODEL_CONFIG, *DPO_CONFIG, STRATEGY, f"{OPTIONS}:PairOptions"),
    "reward_model": (*MODEL_CONFIG, *REWARD_CONFIG, STRATEGY, f"{OPTIONS}:PairOptions", f"{OPTIONS}:RewardOptions"),
    "memory_sft": (*MODEL_CONFIG, *SFT_CONFIG, STRATEGY, "posttrain/recipe/memory_options.py:MemoryOptions"),
    "distill": (
        *MODEL_CONFIG, *SFT_CONFIG, *DISTILLATION_CONFIG, STRATEGY,
        f"{OPTIONS}:SftOptions", f"{OPTIONS}:DistillOptions",
    ),
    "value": (*MODEL_CONFIG, *VALUE_CONFIG, STRATEGY, f"{OPTIONS}:ValueOptions"),
    "eval": (f"{SAMPLING}:EvalOptions",),
    "sample": (f"{SAMPLING}:SampleOptions",),
    "expert_iteration": (
        *MODEL_CONFIG, *SFT_CONFIG, STRATEGY, f"{OPTIONS}:SftOptions", f"{SAMPLING}:SampleOptions",
        f"{SAMPLING}:RoundOptions",
    ),
}  # fmt: skip
# Beside our own fields without default: no run should rest on a library's default for these.
REQUIRED = {
    "sft": ("model_name_or_path", "output_dir", "seed", "max_length", "learning_rate"),
    "grpo": (
        "model_name_or_path", "output_dir", "seed", "learning_rate", "max_completion_length", "num_generations",
        "temperature", "loss_type", "scale_rewards", "beta", "num_iterations", "mask_truncated_completions", "use_vllm",
        "per_device_train_batch_size", "gradient_accumulation_steps",
    ),
    "dpo": ("model_name_or_path", "output_dir", "seed", "max_length", "learning_rate", "beta", "loss_type"),
    "reward_model": ("model_name_or_path", "output_dir", "seed", "max_length", "learning_rate"),
    "memory_sft": ("model_name_or_path", "output_dir", "seed", "max_length", "learning_rate"),
    "distill": ("model_name_or_path", "teacher_model_name_or_path", "output_dir", "seed", "learning_rate"),
    "value": ("model_name_or_path", "output_dir", "seed", "learning_rate"),
    "eval": (),
    "sample": (),
    "expert_iteration": ("max_length", "learning_rate"),
}  # fmt: skip

# Keys of open-r1, alignment-handbook and older TRL recipes, with the name of today.
RENAMED = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "dataset_mixer": "dataset_name, a directory prepared by data_prep/",
    "dataset_mixture": "dataset_name, a directory prepared by data_prep/",
    "tokenizer_name_or_path": "model_name_or_path, whose tokenizer is used",
    "preprocessing_num_workers": "nothing: the tokenizer already uses all cores",
    "max_prompt_length": "nothing: it was removed; filter prompts in data_prep/",
    "overwrite_output_dir": "nothing: it was removed; a run is resumed or refused, never overwritten",
    "logging_dir": "nothing: metrics.jsonl and TensorBoard files lie in output_dir",
}
ACCELERATE = "belongs to the file in accelerate_configs/, as it is about the machine"
OURS = "not taken from a recipe: "
REFUSED = {
    "gradient_checkpointing": f"{ACCELERATE}: dynamo_config.gradient_checkpointing",
    "gradient_checkpointing_kwargs": ACCELERATE,
    "activation_checkpointing": f"{ACCELERATE}: dynamo_config.gradient_checkpointing",
    "activation_checkpointing_kwargs": ACCELERATE,
    "attn_implementation": f"{ACCELERATE}: dynamo_config.attn_implementation",
    "bf16": f"{ACCELERATE}: mixed_precision",
    "fp16": f"{ACCELERATE}: mixed_precision",
    "bf16_full_eval": f"{ACCELERATE}: mixed_precision",
    "fp16_full_eval": f"{ACCELERATE}: mixed_precision",
    "use_cpu": f"{ACCELERATE}: use_cpu",
    "deepspeed": ACCELERATE,
    "fsdp": ACCELERATE,
    "fsdp_config": ACCELERATE,
    "parallelism_config": ACCELERATE,
    "accelerator_config": ACCELERATE,
    "local_rank": ACCELERATE,
    "ddp_backend": ACCELERATE,
    "env": "a recipe sets no environment; export the variable, or put it before the command",
    "hub_token": "a recipe holds no secrets; set HF_TOKEN in the environment",
    "trust_remote_code": "code from a model repository is never run",
    "resume_from_checkpoint": OURS + "a run always resumes from its own last whole checkpoint",
    "ignore_data_skip": OURS + "resuming must see the same rows",
    "save_only_model": OURS + "a checkpoint that cannot be resumed from is not one",
    "auto_find_batch_size": OURS + "it changes the effective batch without a word",
    "full_determinism": OURS + "set CUBLAS_WORKSPACE_CONFIG and run on one machine",
    "truncation_mode": OURS + "nothing is truncated; see too_long",
    "dataset_text_field": OURS + "rows have the columns of data_prep/",
    "dataset_kwargs": OURS + "rows are tokenised and linted by posttrain.data.encode",
    "completion_only_loss": OURS + "the loss is always on the completion alone",
    "assistant_only_loss": OURS + "the loss is always on the completion alone",
    "pad_token": OURS + "the tokenizer's own is used",
    "chat_template_path": OURS + "the tokenizer's own template is used",
    "remove_unused_columns": OURS + "rows are tokenised by posttrain.data.encode",
    "label_names": OURS + "rows are tokenised by posttrain.data.encode",
    "model_init_kwargs": OURS + "the model is loaded by posttrain.models.trainable",
    "use_liger_kernel": OURS + "TRL deprecates it, and it is not tested with these losses",
    "liger_kernel_config": OURS + "see use_liger_kernel",
    "eval_packing": OURS + "validation rows are packed as training rows are",
    "dataset_num_proc": OURS + "the tokenizer already uses all cores",
    "shuffle_dataset": OURS + "the trainer shuffles by seed",
    "padding_free": OURS + "packing: true implies it",
    "do_train": OURS + "the script decides",
    "do_eval": OURS + "the script decides",
    "do_predict": OURS + "the script decides",
}
REFUSED |= {
    "use_transformers_continuous_batching": OURS + "it casts the training weights to bfloat16 for good, and most "
    "updates of a small learning rate are then lost; use_vllm: true, or plain generation",
    "use_transformers_paged": OURS + "see use_transformers_continuous_batching",
    "transformers_continuous_batching_config": OURS + "see use_transformers_continuous_batching",
    "log_completions": OURS + "completions.jsonl is always written; num_completions_to_print bounds it",
    "log_completions_hub_repo": OURS + "completions.jsonl lies in output_dir",
    "chat_template_kwargs": OURS + "prompts are rendered by posttrain.data.prompts, as in evaluation",
    "vllm_importance_sampling_cap": "this key is now vllm_importance_sampling_clip_max",
}
POSITIVE = {
    "max_completion_length", "num_generations", "num_iterations", "guard_prompts", "canary_tolerance",
    "learning_rate", "max_length", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps", "num_train_epochs", "max_new_tokens",
    "num_samples", "num_questions", "num_candidates", "num_rounds", "max_per_question", "eval_batch_size", "batch_size",
     "num_train_examples", "limit", "lora_r", "lora_alpha", "save_total_limit", "top_p",
    "early_stopping_patience", "knowledge_num", "knowledge_length", "knowledge_dim", "gumbel_temperature",
    "kd_temperature", "value_clip",
}  # fmt: skip
LARGEST = {
    "seed": 2**32 - 1, "data_seed": 2**32 - 1, "top_p": 1, "probe_max_truncated": 1, "probe_max_zero_variance": 1,
    "label_smoothing_factor": 1, "counterfactual_prob": 1, "dropout": 1, "kd_alpha": 1,
}  # fmt: skip
AT_LEAST_ZERO = {
    "probe_max_truncated",
    "probe_max_zero_variance",
    "guard_steps",
    "beta",
    "seed",
    "warmup_steps",
    "weight_decay",
    "temperature",
    "sample_generations",
    "lora_dropout",
    "early_stopping_threshold",
    "freeze_layers",
    "label_smoothing_factor",
    "counterfactual_prob",
    "dropout",
    "fusion_rank",
    "gate_rank",
    "similarity_loss_coef",
    "diversity_loss_coef",
    "router_loss_coef",
    "kd_alpha",
    "margin",
}


def command(trainer: str, recipe: str) -> str:
    """The command that runs a recipe of `trainer`."""
    if trainer in ("eval", "sample"):
        return f"python src/{trainer}.py {recipe}"
    if trainer == "expert_iteration":
        return f"POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/….yaml python src/expert_iteration.py {recipe}"
    return f"accelerate launch --config_file accelerate_configs/….yaml src/{trainer}.py {recipe}"


def wrong_trainer(where: str, named: Any, trainer: str, path: Path) -> str:
    """The fault of a recipe given to another script."""
    start = f"{where}: trainer: {named!r}: src/{trainer}.py runs recipes of trainer {trainer!r}; "
    if re.fullmatch(r"[a-z_]+", str(named)) and (Path(__file__).parents[2] / f"{named}.py").exists():
        return start + f"run {command(named, str(path))}"
    return start + f"there is no src/{named}.py in this version, known trainers: {', '.join(SCHEMAS)}"


def required_keys(trainer: str, fields: dict[str, Field]) -> list[str]:
    """Keys a recipe must set: our fields without default, and those no library default should decide."""
    own = [name for name, field in fields.items() if not field.default]
    return [*own, *REQUIRED[trainer]]


def refusal(key: str, value: Any) -> str | None:
    """Why this key is not taken, or None."""
    if key in RENAMED:
        return f"this key is now {RENAMED[key]}"
    return REFUSED.get(key)


def out_of_range(key: str, value: Any) -> str | None:
    """What range a number had to lie in, or None where it does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value in (float("inf"), float("-inf")):
        return "expected a finite number"
    if key in POSITIVE and value <= 0:
        return "expected more than 0"
    if key in LARGEST and value > LARGEST[key]:
        return f"expected at most {LARGEST[key]}"
    return "expected 0 or more" if key in AT_LEAST_ZERO and value < 0 else None


def purpose(help_text: str) -> str:
    """The first sentence of a field's help."""
    return re.split(r"(?<=[.;]) ", " ".join(help_text.replace("%%", "%").split()))[0]
