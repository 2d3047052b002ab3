"""Find keys of a GRPO recipe that contradict each other, although each is fine alone."""

from typing import Any

from posttrain.data.prompts import declared_prompt

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


def grpo_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Values TRL looks at only in training, sampling other than what is trained on, and weights of rewards."""
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
    return faults


def stop_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Texts that end a completion, which only vLLM knows, and what a server rests on beside."""
    faults = []
    stops = (values.get("generation_kwargs") or {}).get("stop") or []
    ends = declared_prompt(values["prompt"]).stop
    if values["use_vllm"] and not set(ends) <= set(stops):
        faults.append(
            f"{path}: generation_kwargs: a completion of prompt {values['prompt']} ends at its text {', '.join(ends)}; "
            f"write {{stop: {list(ends)}, include_stop_str_in_output: true}}"
        )
    if stops:
        if not values["use_vllm"]:
            faults.append(f"{path}: generation_kwargs: stop: only vLLM takes stop strings; use_vllm: true")
        if values["mask_truncated_completions"]:
            faults.append(f"{path}: mask_truncated_completions: true: TRL takes an end by a stop string for a cut")
    if values["use_vllm"]:
        missing = [key for key in SERVER_KEYS if key not in values]
        faults += [f"{path}: {key}: missing; expected with use_vllm: true, as its default has moved" for key in missing]
    return faults


def generation_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Updates that see a part of a generation, and checkpoints in the middle of one."""
    faults = []
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
    return faults


def question_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Dynamic sampling where a group's advantages depend on other groups, or where equal rewards do teach."""
    if not values.get("dynamic_sampling"):
        unread = "max_generation_batches" in values
        return [f"{path}: max_generation_batches: needs dynamic_sampling: true"] if unread else []
    needs = {
        "scale_rewards": (("group", "none"), "another round would change the advantages of the first"),
        "multi_objective_aggregation": (("sum_then_normalize",), "another round would change those of the first"),
    }
    faults = [
        f"{path}: {key}: {values[key]}: {why}; with dynamic_sampling: true expected {' or '.join(known)}"
        for key, (known, why) in needs.items()
        if values.get(key, known[0]) not in known
    ]
    if values["loss_type"] == "no_baseline":
        faults.append(f"{path}: loss_type: no_baseline: equal rewards teach without a baseline; drop dynamic_sampling")
    return faults
