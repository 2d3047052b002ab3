"""What tests/cluster/faults.py strikes: each phase as a command on hosts, with its progress and its result."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster_runs import TWO, arguments, files, flags, grpo_with_a_server, trace_options
from hosts import Host, Running, launched
from vllm_host import PYTHON, VllmHost

CONFIG = {"POSTTRAIN_ACCELERATE_CONFIG": "accelerate_configs/cpu.yaml"}
NETWORK = ("link cut for 20 s", "link cut")
NODE = ("node gone", "out of memory", "node stands still for 20 s", "disk full", "clock an hour ahead")
CHEAP = ("slow node", "a node's own disk full", "directory lags")  # where a command takes seconds
TRAINING = (*NETWORK, "processes of a node killed", *NODE)
STEPS = 8  # of GRPO with a server


@dataclass(frozen=True)
class Ground:
    """Where a phase runs: its hosts, the tiny world, and what a fault asks for."""

    hosts: dict[str, Host]
    data: Path
    out: Path
    wait: int = 300  # seconds that processes wait for one another
    second: dict[str, object] = field(default_factory=dict)  # options of the second host's commands
    server: VllmHost | None = None


@dataclass(frozen=True)
class Phase:
    """Commands on hosts: how they start, how far they are, how much of that outlives their end, and the result."""

    start: Callable[[Ground], list[Running]]
    half: int  # what is done when the fault strikes
    done: Callable[[Path], int]
    kept: Callable[[Path], int]
    result: Callable[[Path], object]
    faults: tuple[str, ...]
    struck: str = "trainer2"
    finish: Callable[[Ground], list[Running]] = lambda ground: []  # once the commands have ended well
    expected: object = None  # the result, where a run that nothing strikes is not needed to know it


def data_prep(ground: Ground) -> list[Running]:
    words, hosts = filter_traces(ground), ground.hosts
    first = hosts["trainer1"].start(*words, "--share", "0/2")
    return [first, hosts["trainer2"].start(*words, "--share", "1/2", **ground.second)]


def write_dataset(ground: Ground) -> list[Running]:
    return [ground.hosts["trainer1"].start(*filter_traces(ground))]


def filter_traces(ground: Ground) -> list[object]:
    words = [sys.executable, "data_prep/filter_traces.py", *trace_options(ground.data / "traces"), "--tasks", 8]
    return [*words, "--out", ground.out, "--work-dir", parts_of(ground.out), "--processes", 1]


def sft(ground: Ground) -> list[Running]:
    changes = {"max_steps": 40, "save_steps": 8, "ddp_timeout": ground.wait, "per_device_train_batch_size": 2}
    return launched(ground.hosts, TWO, arguments(ground.data, ground.out, **changes), second=ground.second)


def grpo(ground: Ground) -> list[Running]:
    values = {
        "model_name_or_path": ground.data / "model", "num_train_examples": 64, "max_steps": 16, "save_steps": 4,
        "logging_steps": 1, "guard_steps": 0, "probe": "off", "per_device_train_batch_size": 4, "warmup_steps": 0,
        "gradient_accumulation_steps": 1, "num_generations": 4, "max_completion_length": 64, "ddp_timeout": ground.wait,
        "dataset_name": ground.data / "tiny_math", "output_dir": ground.out,
    }  # fmt: skip
    return launched(ground.hosts, TWO, ["src/grpo.py", "recipes/tiny_grpo.yaml", *flags(values)], second=ground.second)


def served(ground: Ground) -> list[str]:
    """What the server and the trainers of a run say alike of the server."""
    values = {
        "max_steps": STEPS, "ddp_timeout": ground.wait, "probe": "off", "per_device_train_batch_size": 4,
        "max_completion_length": 64,
    }  # fmt: skip
    return ["src/grpo.py", *grpo_with_a_server(ground.data / "model", ground.data, ground.out, **values)]


def grpo_by_a_server(ground: Ground) -> list[Running]:
    return launched(ground.hosts, TWO, served(ground), PYTHON, ground.second, environment=ground.server.environment)


def evaluate(ground: Ground, python: object, *more: object) -> list[object]:
    values = {
        "model": ground.data / "model", "prompt": "chat", "data_dir": ground.data, "benchmarks": "tiny_1step",
        "batch_size": 2, "max_new_tokens": 64, "limit": 60, "output_dir": ground.out,
    }  # fmt: skip
    return [python, "src/eval.py", "recipes/tiny_eval.yaml", *flags(values), *more]


def evaluation(ground: Ground) -> list[Running]:
    words = evaluate(ground, sys.executable, "--num_workers", 2)
    return [ground.hosts["trainer2"].start(*words, **with_environment(ground, CONFIG))]


def evaluation_by_a_server(ground: Ground) -> list[Running]:
    words = evaluate(ground, PYTHON, "--server", ground.server.url, "--send_weights", "true")
    return [ground.hosts["client"].start(*words, environment=CONFIG | ground.server.environment)]


def rounds(ground: Ground, python: object, *more: object) -> list[object]:
    values = {
        "dataset_name": ground.data / "tiny_math", "data_dir": ground.data, "benchmarks": "tiny_1step", "num_rounds": 1,
        "limit": 4, "model_name_or_path": ground.data / "model", "num_train_epochs": 1, "num_questions": 64,
        "num_candidates": 4, "batch_size": 8, "num_workers": 1, "output_dir": ground.out,
    }  # fmt: skip
    return [python, "src/expert_iteration.py", "recipes/tiny_ei.yaml", *flags(values), *more]


def expert_iteration(ground: Ground) -> list[Running]:
    return [ground.hosts["trainer2"].start(*rounds(ground, sys.executable), **with_environment(ground, CONFIG))]


def expert_iteration_by_a_server(ground: Ground) -> list[Running]:
    words = rounds(ground, PYTHON, "--server", ground.server.url)
    return [ground.hosts["client"].start(*words, environment=CONFIG | ground.server.environment)]


def with_environment(ground: Ground, environment: dict[str, str]) -> dict[str, object]:
    return {**ground.second, "environment": environment | ground.second.get("environment", {})}


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


def steps(out: Path) -> object:
    """The steps that a finished run logged: where samples have no seed, a run that was struck has no other twin."""
    assert (out / "final/model.safetensors").is_file()
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved(out: Path) -> int:
    """The step of the last whole checkpoint."""
    return max((int(path.parent.name.split("-")[1]) for path in out.glob("checkpoint-*/complete.json")), default=0)


def sampled(out: Path) -> int:
    return lines(out / "tiny_1step/samples.partial.jsonl")


def rolled_out(out: Path) -> int:
    return lines(out / "round_1/rollouts/rollouts.partial.jsonl")


PHASES = {
    "data_prep": Phase(data_prep, 4, parts, parts, files, (*NODE, *CHEAP), finish=write_dataset),
    "SFT": Phase(sft, 19, logged, saved, weights, (*TRAINING, *CHEAP)),
    "GRPO": Phase(grpo, 9, logged, saved, weights, (*TRAINING, "directory lags")),
    "GRPO, a server": Phase(
        grpo_by_a_server, 5, logged, saved, steps, (*NETWORK, "node gone"), "server",
        expected=list(range(1, STEPS + 1)),
    ),
    "expert iteration": Phase(expert_iteration, 20, rolled_out, rolled_out, weights, NODE),
    "expert iteration, a server": Phase(
        expert_iteration_by_a_server, 20, rolled_out, rolled_out, weights, ("link cut for 20 s", "node gone"), "server"
    ),
    "evaluation": Phase(evaluation, 20, sampled, sampled, samples, (*NODE, *CHEAP)),
    "evaluation, a server": Phase(
        evaluation_by_a_server, 20, sampled, sampled, samples,
        (*NETWORK, "node gone", "node stands still for 20 s"), "server",
    ),
}  # fmt: skip
