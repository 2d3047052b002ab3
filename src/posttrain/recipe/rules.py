"""Rules for single keys of a recipe: renamed keys, keys that belong elsewhere, and ranges."""

import re
from dataclasses import replace
from typing import Any

from posttrain.recipe.schema import Field

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
    "chat_template": OURS + "the tokenizer's own template is used; another one goes into chat_template.jinja beside it",
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
# Ranges of the libraries' fields; those of ours stand in the fields themselves (posttrain.recipe.options).
POSITIVE = {
    "max_completion_length", "num_generations", "num_iterations", "learning_rate", "max_length",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps",
    "save_steps", "eval_steps", "num_train_epochs", "lora_r", "lora_alpha", "save_total_limit", "top_p",
    "vllm_tensor_parallel_size", "ddp_timeout",
}  # fmt: skip
LARGEST = {"seed": 2**32 - 1, "data_seed": 2**32 - 1, "top_p": 1, "label_smoothing_factor": 1}
AT_LEAST_ZERO = {
    "beta", "seed", "warmup_steps", "weight_decay", "temperature", "lora_dropout", "label_smoothing_factor",
}  # fmt: skip
HELP = {  # where the library's own leaves out what a recipe needs to know
    "ddp_timeout": "Seconds that processes wait for one another before a run calls one of them lost.",
    "warmup_steps": "Steps of linear warmup; a number below 1 is a share of all steps.",
    "vllm_tensor_parallel_size": "GPUs that share vLLM's model: of a server, or beside the trainer.",
}


def refusal(key: str, value: Any) -> str | None:
    """Why this key is not taken, or None."""
    if key in RENAMED:
        return f"this key is now {RENAMED[key]}"
    return REFUSED.get(key)


def with_range(field: Field) -> Field:
    """A library's field with its range and what its help leaves out."""
    return replace(
        field,
        above=0 if field.name in POSITIVE else None,
        minimum=0 if field.name in AT_LEAST_ZERO else None,
        maximum=LARGEST.get(field.name),
        help=HELP.get(field.name, field.help),
    )


def out_of_range(field: Field, value: Any) -> str | None:
    """What range a number had to lie in, or None where it does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value in (float("inf"), float("-inf")):
        return "expected a finite number"
    if field.above is not None and value <= field.above:
        return f"expected more than {field.above}"
    if field.minimum is not None and value < field.minimum:
        return f"expected {field.minimum} or more"
    if field.maximum is not None and value > field.maximum:
        return f"expected at most {field.maximum}"
    return None


def purpose(help_text: str) -> str:
    """The first sentence of a field's help."""
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(help_text.replace("%%", "%").split()))[0]
