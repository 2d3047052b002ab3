"""What of a recipe and its accelerate config is changed so that three steps of it run on this machine."""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from posttrain.hardware import FLASH, KERNELS
from posttrain.pipelines.rehearsal.small_data import BANK
from posttrain.recipe.methods import find_method
from posttrain.recipe.schema import accepts

PROCESSES = 2  # that stand for several
GENERATIONS = 3  # steps, or generations where steps share one
TOKENS = 24  # of a sampled answer
LONGEST = 1024  # tokens of a row
LENGTH = "soft_overlong"  # a reward that differs between answers none of which is right
IN_PROCESS = {  # keys of a GRPO recipe that samples in its own process
    "use_vllm": False, "server_args": None, "vllm_pipeline_parallel_size": 1, "generation_kwargs": None,
    "generation_ahead": 0, "vllm_lora_sync": "merged",
}  # fmt: skip


def config_of_header(recipe: Path) -> Path:
    """The accelerate config of the command in a recipe's header; that of a CPU where it names none."""
    header = recipe.read_text().split("\ntrainer:")[0]
    commands = [line for line in header.splitlines() if recipe.name in line] or header.splitlines()
    named = [match for line in commands for match in re.findall(r"accelerate_configs/\w+\.yaml", line)]
    return Path(named[-1] if named else "accelerate_configs/cpu.yaml")


def accelerate_here(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """An accelerate config for CPUs of the same kind, and what differs: this machine's and the real one's."""
    here, differences = copy.deepcopy(config), {}
    processes, kind = int(config.get("num_processes") or 1), str(config.get("distributed_type") or "NO")
    for key in ("deepspeed_config", "fsdp_config", "gpu_ids", "rdzv_backend", "same_network"):
        here.pop(key, None)
    here |= {"use_cpu": True, "num_processes": min(PROCESSES, processes), "num_machines": 1, "machine_rank": 0}
    here |= {"distributed_type": "MULTI_GPU" if processes > 1 else "NO"}
    if processes > 1:
        here["main_process_ip"] = "127.0.0.1"
    toggles = here.setdefault("dynamo_config", {})
    attention = toggles.get("attn_implementation", "sdpa")
    if attention in FLASH or attention.startswith(KERNELS):
        toggles["attn_implementation"] = "varlen_sdpa"
        differences["attention"] = f"varlen_sdpa here, {attention} there"
    if config.get("mixed_precision") == "fp16":
        here["mixed_precision"] = "bf16"
        differences["precision"] = "bf16 here, fp16 there"
    if not config.get("use_cpu"):
        differences["device"] = "CPU here, GPU there"
        differences["precision"] = (
            f"{here.get('mixed_precision', 'no')} autocast on a CPU, whose sums have another order"
        )
    if processes > PROCESSES:
        differences["processes"] = f"{PROCESSES} over gloo here, {processes} there"
    if kind in ("DEEPSPEED", "FSDP"):
        stage = (config.get("deepspeed_config") or {}).get("zero_stage")
        name = f"ZeRO-{stage}" if kind == "DEEPSPEED" else "FSDP"
        differences["sharding"] = f"whole copies here, {name} there"
    return here, differences


def differences_of(values: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """What of a recipe itself is otherwise there."""
    differences, changed = {}, _batches(values) if find_method(values["trainer"]).library else {}
    told = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "max_new_tokens")
    small = {**changed, "max_completion_length": TOKENS, "max_new_tokens": TOKENS}
    pairs = [
        f"{key} {small[key]} here, {values[key]} there"
        for key in told
        if values.get(key) and values[key] != small.get(key, values[key])
    ]
    if pairs:
        differences["sizes"] = "; ".join(pairs)
    trackers = values.get("report_to", "none")
    if trackers not in ("none", [], None):
        differences["trackers"] = f"none here, {trackers if isinstance(trackers, str) else ', '.join(trackers)} there"
    if values["trainer"] == "grpo" and LENGTH not in values["reward_funcs"]:
        differences["rewards"] = f"{LENGTH} is added here, as no answer of a random model is right"
    if values.get("use_vllm"):
        differences["server"] = "a CPU's, in float32, for three steps here; GPUs' there"
    return differences


def write_config(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def overrides_here(values: dict[str, Any], model: Path, out: Path) -> dict[str, Any]:
    """Fields of a recipe under which it takes three small steps, a checkpoint after each, and tells nobody."""
    trainer = values["trainer"]
    small = {
        "model_name_or_path": str(model), "model_revision": None, "dataset_name": str(out / "data"),
        "num_train_examples": None, "save_strategy": "steps", "save_total_limit": None,
        "logging_steps": 1, "report_to": "none", "plan": "off", "grace": 0.0, "disable_tqdm": True,
        "per_device_eval_batch_size": 4, "eval_benchmarks": None, "eval_server": None, "push_to_hub": False,
        "sample_generations": min(1, values.get("sample_generations") or 0),
    }  # fmt: skip
    small |= _batches(values)
    if values.get("max_length"):
        small["max_length"] = min(LONGEST, values["max_length"])
    if values.get("teacher_model_name_or_path"):
        small |= {"teacher_model_name_or_path": str(out / "teacher"), "teacher_model_revision": None}
    if values.get("max_completion_length"):
        small["max_completion_length"] = min(TOKENS, values["max_completion_length"])
    small |= {"grpo": _grpo, "expert_iteration": _rounds, "memory_sft": _memory}.get(trainer, _nothing)(values, out)
    known = find_method(trainer).fields
    unset = {key for key, value in small.items() if value in (None, False, 0, "no") and key not in values}
    unset |= {key for key in known if small.get(key, 0) is None and not accepts(known[key].annotation, None)}
    return {key: value for key, value in small.items() if key in known and key not in unset}


def _batches(values: dict[str, Any]) -> dict[str, Any]:
    """Small batches whose steps, generations and iterations relate as the recipe's do."""
    batch, accumulation = values.get("per_device_train_batch_size") or 8, values.get("gradient_accumulation_steps") or 1
    reuse = values.get("steps_per_generation") or accumulation
    ours = {"per_device_train_batch_size": min(2, batch), "gradient_accumulation_steps": min(2, accumulation)}
    if reuse != accumulation:
        more = reuse > accumulation
        ours |= {"gradient_accumulation_steps": 1 if more else 2, "steps_per_generation": 2 if more else 1}
    a = ours["gradient_accumulation_steps"]
    iterations = values.get("num_iterations") or (2 if values["trainer"] == "value" else 1)
    period = max(1, ours.get("steps_per_generation", a) * iterations // a)
    ours |= {"save_steps": period, "max_steps": GENERATIONS * period}
    if values.get("eval_strategy", "no") != "no":
        often = period if values.get("load_best_model_at_end") else GENERATIONS * period
        ours |= {"eval_strategy": "steps", "eval_steps": often}
    return ours


def _grpo(values: dict[str, Any], out: Path) -> dict[str, Any]:
    """Two completions of each prompt, sampled in the training process, and a reward that tells random ones apart."""
    small = {"num_generations": 2, "generation_batch_size": None, "probe": "warn", "guard_prompts": 4}
    if values.get("guard_steps"):
        small["guard_steps"] = _batches(values)["save_steps"]
    if values.get("dynamic_sampling"):
        small["max_generation_batches"] = 2
    if LENGTH not in values["reward_funcs"]:
        weights = values.get("reward_weights")
        small |= {"reward_funcs": [*values["reward_funcs"], LENGTH], "reward_weights": weights and [*weights, 1.0]}
    return small | (IN_PROCESS if values.get("use_vllm") else {})


def served_here(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides of a GRPO run whose completions come from a server of this machine, as the recipe asks for."""
    kept = {key: value for key, value in overrides.items() if key not in IN_PROCESS}
    length = min(int(values.get("vllm_max_model_length") or LONGEST), LONGEST)
    return kept | {
        "vllm_server_host": "127.0.0.1", "vllm_server_base_url": None, "vllm_tensor_parallel_size": 1,
        "vllm_pipeline_parallel_size": 1, "vllm_server_timeout": 60.0, "vllm_max_model_length": length,
    }  # fmt: skip


def _rounds(values: dict[str, Any], out: Path) -> dict[str, Any]:
    """One round that trains on whatever the small model answers, right or not."""
    return {
        "num_rounds": 1, "dataset_name": str(out / "data"), "num_questions": 8, "num_candidates": 2,
        "max_new_tokens": TOKENS, "batch_size": 8, "accept": "best", "num_workers": 1, "server": None,
        "eval_batch_size": 8, "limit": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
        "save_steps": 1, "max_steps": GENERATIONS,
    }  # fmt: skip


def _memory(values: dict[str, Any], out: Path) -> dict[str, Any]:
    """Its questions and its bank are its own, or those that were made up."""
    made, few = out / "made_up", {"dataset_name": values["dataset_name"], "num_train_examples": 16}
    if values.get("reading") == "tokens":  # states of rows are those of another model
        few |= {"keys_path": None, "router_steps": 2}
    if not (made / BANK).is_file():
        return few
    facts = {"dataset_name": str(made / "train.json"), "cache_path": str(made / BANK), "knowledge_num": 256}
    return few | facts | ({"validation_name": str(made / "validation.json")} if "validation_name" in values else {})


def _nothing(values: dict[str, Any], out: Path) -> dict[str, Any]:
    return {}
