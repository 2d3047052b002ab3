"""Which checks on paper a recipe has, and which keys are to blame where a fault names none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.data.benchmarks import benchmark_names, declarations, load_benchmarks
from posttrain.errors import PosttrainError
from posttrain.pipelines.rehearsal import answers, paper
from posttrain.pipelines.rehearsal.faults import NotHere
from posttrain.pipelines.rehearsal.paper import Paper
from posttrain.plan.recipe_plan import Plan

Checks = list[tuple[str, Callable[[], str], tuple[str, ...]]]
BENCHMARKS = ("benchmarks", "eval_benchmarks")  # keys that name some


def checks_of(looked: Paper, model: Path, plan: Plan | None) -> Checks:
    """Name, check and keys of everything that is looked at in a recipe with a dataset."""
    values, trainer = looked.values, looked.recipe.trainer
    asks = trainer in paper.ASKS
    found: Checks = [("rows", lambda: paper.check_rows(looked), ("dataset_name", "prompt"))]
    if values.get("max_length") or asks:
        found.append(("budget", lambda: paper.check_budget(looked), ("max_length",)))
    found.append(("end token", lambda: paper.check_end(looked), ("eos_token", "append_eos")))
    if asks:
        found.append(("golds", lambda: answers.check_golds(looked), ("dataset_name",)))
    else:
        found.append(("tokenizer of the rows", lambda: paper.check_token_files(looked), ("dataset_name",)))
    if trainer == "grpo":
        found.append(("rewards", lambda: answers.check_rewards(looked), ("reward_funcs",)))
    if trainer not in ("sample", "expert_iteration"):
        found.append(("batches", lambda: paper.check_batches(looked, plan), ("per_device_train_batch_size",)))
    if values.get("use_vllm") and values.get("vllm_mode") == "server":
        found.append(("port", lambda: paper.check_port(looked), ("vllm_server_port",)))
    if values.get("use_peft"):
        found.append(("adapter", lambda: paper.check_adapter(looked, model), ("lora_target_modules",)))
    if any(values.get(key) for key in ("freeze_layers", "freeze_embeddings", "freeze_patterns")):
        found.append(("frozen weights", lambda: paper.check_frozen(looked, model), ("freeze_layers",)))
    return found


def check_benchmarks(values: dict[str, Any], made_up: bool) -> str:
    """Raise where a benchmark is unknown or not prepared; NotHere where made-up questions may stand for it."""
    key = next(key for key in BENCHMARKS if values.get(key))
    names, data_dir = str(values[key]), Path(str(values.get("data_dir", "data")))
    missing = [name for name in benchmark_names(names) if name in declarations()]
    missing = [name for name in missing if not (data_dir / declarations()[name]["file"]).is_file()]
    if missing and made_up and set(benchmark_names(names)) <= set(declarations()):
        raise NotHere(f"{', '.join(missing)}: not prepared below {data_dir}; questions of the tiny world stand for it")
    found = load_benchmarks(names, data_dir, None)
    if not found:
        raise PosttrainError(f"{key}: {names!r}: names no benchmark")
    return ", ".join(f"{len(benchmark.rows):,} questions of {benchmark.name}" for benchmark in found)
