"""What tests/cluster/faults.py strikes: each phase as a command on hosts, with its progress and its result."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster_runs import TWO, arguments, files, trace_options
from hosts import Host, Running, launched

Hosts = dict[str, Host]
Options = dict[str, object]  # of the second host's commands


@dataclass(frozen=True)
class Phase:
    """A command on hosts: how it starts, how far it is, how much of that outlives its end, and its result."""

    start: Callable[[Hosts, Path, Path, int, Options], list[Running]]
    half: int  # what is done when the fault strikes
    done: Callable[[Path], int]
    kept: Callable[[Path], int]
    result: Callable[[Path], object]


def sft(own: Hosts, data: Path, out: Path, wait: int, second: Options) -> list[Running]:
    changes = {"max_steps": 40, "save_steps": 8, "ddp_timeout": wait, "per_device_train_batch_size": 2}
    return launched(own, TWO, arguments(data, out, **changes), second=second)


def grpo(own: Hosts, data: Path, out: Path, wait: int, second: Options) -> list[Running]:
    values = {
        "model_name_or_path": "assets/tiny_base", "eos_token": "<|im_end|>", "num_train_examples": 16, "max_steps": 16,
        "save_steps": 4, "logging_steps": 1, "guard_steps": 0, "probe": "off", "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "num_generations": 4, "max_completion_length": 24, "ddp_timeout": wait,
        "dataset_name": data / "tiny_math", "output_dir": out,
    }  # fmt: skip
    flags = [part for key, value in values.items() for part in (f"--{key}", value)]
    return launched(own, TWO, ["src/grpo.py", "recipes/tiny_grpo.yaml", *flags], second=second)


def evaluation(own: Hosts, data: Path, out: Path, wait: int, second: Options) -> list[Running]:
    command = [
        sys.executable, "src/eval.py", "recipes/tiny_eval.yaml", "--model", "assets/tiny_base", "--prompt", "chat",
        "--data_dir", data, "--benchmarks", "tiny_1step", "--batch_size", 2, "--max_new_tokens", 64, "--num_workers", 1,
        "--limit", 60, "--output_dir", out,
    ]  # fmt: skip
    return [own["trainer2"].start(*command, **with_config(second))]


def data_prep(own: Hosts, data: Path, out: Path, wait: int, second: Options) -> list[Running]:
    words = [sys.executable, "data_prep/filter_traces.py", *trace_options(data / "traces"), "--tasks", 8, "--out", out]
    return [own["trainer2"].start(*words, "--work-dir", parts_of(out), "--processes", 1, **second)]


def expert_iteration(own: Hosts, data: Path, out: Path, wait: int, second: Options) -> list[Running]:
    values = {
        "dataset_name": data / "tiny_math", "data_dir": data, "benchmarks": "tiny_1step", "num_rounds": 1, "limit": 4,
        "model_name_or_path": data / "model", "num_train_epochs": 4, "save_steps": 2, "logging_steps": 1,
        "num_questions": 64, "num_candidates": 4, "batch_size": 8, "output_dir": out,
    }  # fmt: skip
    flags = [part for key, value in values.items() for part in (f"--{key}", value)]
    command = [sys.executable, "src/expert_iteration.py", "recipes/tiny_ei.yaml", *flags]
    return [own["trainer2"].start(*command, **with_config(second))]


def with_config(second: Options) -> Options:
    environment = {"POSTTRAIN_ACCELERATE_CONFIG": "accelerate_configs/cpu.yaml", **second.get("environment", {})}
    return {**second, "environment": environment}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def weights(out: Path) -> object:
    return (out / "final/model.safetensors").read_bytes()


def samples(out: Path) -> object:
    found = [json.loads(line) for line in (out / "tiny_1step/samples.jsonl").read_text().splitlines()]
    return sorted((row["id"], row["completion"], row["verdict"]) for row in found)


def parts_of(out: Path) -> Path:
    return out.parent / f"{out.name}_parts"


def parts(out: Path) -> int:
    return len(list(parts_of(out).rglob("*.arrow")))


def logged(out: Path) -> int:
    return lines(out / "metrics.jsonl")


def saved(out: Path) -> int:
    """The step of the last whole checkpoint."""
    return max((int(path.parent.name.split("-")[1]) for path in out.glob("checkpoint-*/complete.json")), default=0)


def sampled(out: Path) -> int:
    return lines(out / "tiny_1step/samples.partial.jsonl")


def rolled_out(out: Path) -> int:
    return sum(lines(path) for path in out.glob("round_1/**/*.partial.jsonl"))


PHASES = {
    "data_prep": Phase(data_prep, 4, parts, parts, files),
    "SFT": Phase(sft, 19, logged, saved, weights),
    "GRPO": Phase(grpo, 9, logged, saved, weights),
    "expert iteration": Phase(expert_iteration, 100, rolled_out, rolled_out, weights),
    "evaluation": Phase(evaluation, 20, sampled, sampled, samples),
}
