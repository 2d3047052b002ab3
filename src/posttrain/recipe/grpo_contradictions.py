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
RESTS = "not taken from a recipe: that weights arrive and are what is sampled rests on it"
SERVER_FLAGS = {  # of vLLM, which server_args may not set
    "model": "model_name_or_path says it",
    "served-model-name": "model_name_or_path says it",
    "revision": "model_revision says it",
    "host": "vllm_server_host says it",
    "port": "vllm_server_port says it",
    "max-model-len": "vllm_max_model_length says it",
    "hf-overrides": "rope_theta and max_position_embeddings say it",
    "tensor-parallel-size": "vllm_tensor_parallel_size says it",
    "pipeline-parallel-size": "vllm_pipeline_parallel_size says it",
    "weight-transfer-config": RESTS,
    "logprobs-mode": RESTS,
    "max-logprobs": RESTS,
    "generation-config": RESTS,
    "config": "write its flags here instead of a file of flags",
    "trust-remote-code": "code from a model repository is never run",
}
LARGEST_RANK = 512  # of an adapter that vLLM serves
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


def server_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Flags of a server that there is none of, or that another key says."""
    faults, server = [], values["use_vllm"] and values.get("vllm_mode") == "server"
    if not server:
        faults += [
            f"{path}: {key}: {values[key]!r}: is of a server; needs use_vllm: true and vllm_mode: server"
            for key in ("server_args", "vllm_pipeline_parallel_size")
            if values.get(key) not in (None, 1)
        ]
    for name, value in (values.get("server_args") or {}).items():
        flag = str(name).replace("_", "-")
        if flag in SERVER_FLAGS:
            faults.append(f"{path}: server_args: {name}: {SERVER_FLAGS[flag]}")
        elif flag.startswith("-") or flag.startswith("no-"):
            faults.append(f"{path}: server_args: {name}: write the name without dashes, and false to switch it off")
        elif value is None or value == [] or not isinstance(value, bool | int | float | str | list | dict):
            faults.append(
                f"{path}: server_args: {name}: {value!r}: expected true, false, a number, text, list or mapping"
            )
    return faults


def ahead_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Generation one step ahead without a server that could do it, or where samples would be older than one update."""
    if not values.get("generation_ahead"):
        return []
    accumulation = values["gradient_accumulation_steps"]
    faults = {
        "vllm_mode: server": not (values["use_vllm"] and values.get("vllm_mode") == "server"),
        "vllm_importance_sampling_correction: true": not values.get("vllm_importance_sampling_correction"),
        "dynamic_sampling: false, as another round would wait for the batch that was sent": values.get(
            "dynamic_sampling"
        ),
        "num_iterations: 1": values["num_iterations"] > 1,
        f"steps_per_generation: {accumulation}, as of gradient_accumulation_steps": (
            (values.get("steps_per_generation") or accumulation) != accumulation
        ),
    }
    return [f"{path}: generation_ahead: 1: needs {needed}" for needed, missing in faults.items() if missing]


def adapter_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """An adapter to be sent alone where there is none, or one that vLLM does not serve."""
    if values.get("vllm_lora_sync", "merged") == "merged":
        return []
    faults = {
        "use_vllm: true and vllm_mode: server": not (values["use_vllm"] and values.get("vllm_mode") == "server"),
        "use_peft: true": not values.get("use_peft"),
        f"lora_r: at most {LARGEST_RANK}": int(values.get("lora_r", 16)) > LARGEST_RANK,
        "lora_modules_to_save: null, as vLLM serves low-rank matrices alone": values.get("lora_modules_to_save"),
        "use_dora: false, which vLLM does not serve": values.get("use_dora"),
    }
    return [f"{path}: vllm_lora_sync: adapter: needs {needed}" for needed, missing in faults.items() if missing]


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
