"""What a recipe may not say and why: renamed keys, keys that belong elsewhere, ranges, and contradictions."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from posttrain.distill_rules import distill_contradictions, value_contradictions
from posttrain.schema import (
    DISTILLATION_CONFIG,
    DPO_CONFIG,
    GRPO_CONFIG,
    MODEL_CONFIG,
    REWARD_CONFIG,
    SFT_CONFIG,
    VALUE_CONFIG,
    Field,
)

OPTIONS = "posttrain/options.py"
SCHEMAS = {
    "sft": (*MODEL_CONFIG, *SFT_CONFIG, f"{OPTIONS}:SftOptions"),
    "grpo": (*MODEL_CONFIG, *GRPO_CONFIG, f"{OPTIONS}:GrpoOptions"),
    "dpo": (*MODEL_CONFIG, *DPO_CONFIG, f"{OPTIONS}:PairOptions"),
    "reward_model": (*MODEL_CONFIG, *REWARD_CONFIG, f"{OPTIONS}:PairOptions", f"{OPTIONS}:RewardOptions"),
    "distill": (
        *MODEL_CONFIG, *SFT_CONFIG, *DISTILLATION_CONFIG, f"{OPTIONS}:SftOptions", f"{OPTIONS}:DistillOptions",
    ),
    "value": (*MODEL_CONFIG, *VALUE_CONFIG, f"{OPTIONS}:ValueOptions"),
    "eval": (f"{OPTIONS}:EvalOptions",),
    "sample": (f"{OPTIONS}:SampleOptions",),
    "expert_iteration": (
        *MODEL_CONFIG, *SFT_CONFIG, f"{OPTIONS}:SftOptions", f"{OPTIONS}:SampleOptions", f"{OPTIONS}:RoundOptions",
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
    "dataset_kwargs": OURS + "rows are tokenised and linted by posttrain.encode",
    "completion_only_loss": OURS + "the loss is always on the completion alone",
    "assistant_only_loss": OURS + "the loss is always on the completion alone",
    "pad_token": OURS + "the tokenizer's own is used",
    "chat_template_path": OURS + "the tokenizer's own template is used",
    "remove_unused_columns": OURS + "rows are tokenised by posttrain.encode",
    "label_names": OURS + "rows are tokenised by posttrain.encode",
    "model_init_kwargs": OURS + "the model is loaded by posttrain.training",
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
    "chat_template_kwargs": OURS + "prompts are rendered by posttrain.prompts, as in evaluation",
    "vllm_importance_sampling_cap": "this key is now vllm_importance_sampling_clip_max",
}
# Fields whose values TRL documents but looks at only when training is under way.
GRPO_CHOICES = {
    "loss_type": (
        "grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo",
        "no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip",
    ),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}  # fmt: skip
# What server mode rests on beside, so that no default of another release decides it.
SERVER_KEYS = ("vllm_mode", "vllm_server_timeout", "vllm_importance_sampling_correction")
# The log-probabilities that are trained are those of the whole distribution.
WHOLE_DISTRIBUTION = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
POSITIVE = {
    "max_completion_length", "num_generations", "num_iterations", "guard_prompts", "canary_tolerance",
    "learning_rate", "max_length", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps", "num_train_epochs", "max_new_tokens",
    "num_samples", "num_questions", "num_candidates", "num_rounds", "max_per_question", "eval_batch_size", "batch_size",
     "num_train_examples", "limit", "lora_r", "lora_alpha", "save_total_limit", "top_p",
    "kd_temperature", "value_clip",
}  # fmt: skip
LARGEST = {
    "seed": 2**32 - 1, "data_seed": 2**32 - 1, "top_p": 1, "probe_max_truncated": 1, "probe_max_zero_variance": 1,
    "label_smoothing_factor": 1, "kd_alpha": 1,
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
    "label_smoothing_factor",
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
    if re.fullmatch(r"[a-z_]+", str(named)) and (Path(__file__).parents[1] / f"{named}.py").exists():
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


def contradictions(trainer: str, path: str, values: dict[str, Any]) -> list[str]:
    """Faults between keys, each of which is fine alone."""
    if trainer == "eval":
        if values.get("num_samples", 1) > 1 and not values.get("temperature", 0.0):
            return [f"{path}: num_samples: {values['num_samples']}: greedy samples are all the same; set temperature"]
        return []
    others = {
        "dpo": _pair_contradictions, "reward_model": _pair_contradictions, "value": _pair_contradictions,
        "sample": _sampling_contradictions, "expert_iteration": _round_contradictions, "grpo": _grpo_contradictions,
    }  # fmt: skip
    own = {"distill": distill_contradictions, "value": value_contradictions}.get(trainer, lambda *_: [])
    return own(path, values) + others.get(trainer, _sft_contradictions)(path, values)


def _grpo_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = [
        f"{path}: {key}: {values[key]!r}: expected one of {', '.join(known)}"
        for key, known in GRPO_CHOICES.items()
        if key in values and values[key] not in known
    ]
    for key, whole in WHOLE_DISTRIBUTION.items():
        if (values.get(key) or whole) != whole:
            faults.append(
                f"{path}: {key}: {values[key]}: expected {whole}; log-probabilities are trained on all tokens"
            )
    if values.get("eval_strategy", "no") != "no":
        faults.append(f"{path}: eval_strategy: {values['eval_strategy']!r}: not for GRPO; guard_steps evaluates")
    weights, names = values.get("reward_weights"), values["reward_funcs"]
    if not names or (weights is not None and len(weights) != len(names)):
        faults.append(f"{path}: reward_weights: {weights}: expected one weight for each of reward_funcs: {names}")
    if "stop" in (values.get("generation_kwargs") or {}):
        if not values["use_vllm"]:
            faults.append(f"{path}: generation_kwargs: stop: only vLLM takes stop strings; use_vllm: true")
        if values["mask_truncated_completions"]:
            faults.append(f"{path}: mask_truncated_completions: true: TRL takes an end by a stop string for a cut")
    if values["use_vllm"]:
        missing = [key for key in SERVER_KEYS if key not in values]
        faults += [f"{path}: {key}: missing; expected with use_vllm: true, as its default has moved" for key in missing]
    accumulation = values["gradient_accumulation_steps"]
    reuse = values.get("steps_per_generation") or accumulation
    if max(reuse, accumulation) % min(reuse, accumulation):
        faults.append(
            f"{path}: steps_per_generation: {reuse}: expected a multiple or a divisor of gradient_accumulation_steps "
            f"({accumulation}), so that an update sees whole generations"
        )
    for key in ("save_steps", "guard_steps"):
        steps = values.get(key) or 0
        if isinstance(steps, int) and steps * accumulation % (reuse * values["num_iterations"]):
            faults.append(
                f"{path}: {key}: {steps}: lies between two generations, so a run resumed there would not be the same; "
                f"expected a multiple of steps_per_generation × num_iterations / gradient_accumulation_steps"
            )
    off_policy = reuse > accumulation or values["num_iterations"] > 1
    if off_policy and values["loss_type"] in ("no_baseline", "reinforce_with_baseline"):
        faults.append(f"{path}: loss_type: {values['loss_type']}: has no ratio, so each completion is trained on once")
    return faults + _memory_contradictions(path, values)


def _sampling_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    if values.get("temperature") == 0:
        return [f"{path}: temperature: 0: greedy candidates are all the same; expected more than 0"]
    return []


def _round_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = _sampling_contradictions(path, values) + _sft_contradictions(path, values)
    if values.get("eval_strategy", "no") != "no":
        faults.append(f"{path}: eval_strategy: {values['eval_strategy']!r}: rounds have no validation rows; write no")
    if values.get("use_peft") and values.get("start_from", "last") == "last" and values["num_rounds"] > 1:
        faults.append(f"{path}: start_from: last: an adapter cannot start a run; write start_from: base")
    if values.get("max_per_question") and values.get("select", "first") != "all_correct":
        faults.append(f"{path}: max_per_question: only select: all_correct keeps several")
    if values.get("random_init") or not values.get("append_eos", True):
        faults.append(f"{path}: random_init and append_eos: false make no sense where the model writes its own rows")
    return faults


def _pair_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = []
    if values.get("eval_strategy", "no") == "steps" and not values.get("eval_steps"):
        faults.append(f"{path}: eval_steps: missing: expected a number of steps with eval_strategy: steps")
    if values.get("padding_free"):
        faults.append(f"{path}: padding_free: true: pairs are padded; leave it out")
    return faults + _memory_contradictions(path, values)


def _sft_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = []
    if values.get("packing") and values.get("packing_strategy", "bfd") != "bfd":
        faults.append(
            f"{path}: packing_strategy: {values['packing_strategy']!r}: expected bfd; the others cut rows in the middle"
        )
    if values["prompt"] == "none" and values.get("append_eos", True):
        faults.append(f"{path}: append_eos: true: plain text (prompt: none) has no end; write append_eos: false")
    if values.get("label_smoothing_factor") and values.get("loss_type", "nll") not in ("nll", "chunked_nll"):
        faults.append(
            f"{path}: label_smoothing_factor: loss_type: {values['loss_type']} has none; write loss_type: nll"
        )
    if values.get("eval_strategy", "no") == "steps" and not values.get("eval_steps"):
        faults.append(f"{path}: eval_steps: missing: expected a number of steps with eval_strategy: steps")
    if values.get("sample_generations") and values.get("eval_strategy", "no") == "no":
        faults.append(f"{path}: sample_generations: needs eval_strategy: steps or epoch")
    if values.get("use_peft") and values.get("random_init"):
        faults.append(f"{path}: use_peft: true: an adapter on random weights (random_init: true) learns nothing")
    if values.get("load_best_model_at_end") and values.get("eval_strategy", "no") == "no":
        faults.append(f"{path}: load_best_model_at_end: true: needs eval_strategy: steps or epoch")
    return faults + _memory_contradictions(path, values)


def _memory_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = []
    quantised = values.get("load_in_4bit") or values.get("load_in_8bit")
    needs_bitsandbytes = quantised or re.search("8bit|4bit|bnb|paged", values.get("optim", ""))
    if needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        faults.append(f"{path}: 8-bit and 4-bit weights or optimizers need the package: pip install bitsandbytes")
    if quantised and not values.get("use_peft"):
        faults.append(f"{path}: load_in_4bit/load_in_8bit: quantised weights cannot be trained; add use_peft: true")
    return faults


def purpose(help_text: str) -> str:
    """The first sentence of a field's help."""
    return re.split(r"(?<=[.;]) ", " ".join(help_text.replace("%%", "%").split()))[0]
