"""A short run of every command that takes a while, for tests that end it in the middle."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from conftest import LAUNCHER, REPOSITORY, Once, must, run_script
from traces import CHAT, solved
from verified import write_verified

BASE = REPOSITORY / "assets/tiny_base"
TWO = (*LAUNCHER, "accelerate_configs/cpu_2proc.yaml")
SHORT = {
    "max_steps": 6, "save_steps": 2, "eval_strategy": "no", "sample_generations": 0, "logging_steps": 1,
    "num_train_examples": 32, "per_device_train_batch_size": 2,
}  # fmt: skip
GRPO = {
    "max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "num_generations": 4, "max_completion_length": 24, "guard_steps": 1, "guard_prompts": 4, "probe": "warn",
    "num_train_examples": 8, "eos_token": "<|im_end|>",
}  # fmt: skip
PAIRS = {
    "max_steps": 6, "save_steps": 2, "eval_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 8,
    "eos_token": "<|im_end|>",
}  # fmt: skip
STUDENT = {"teacher_model_name_or_path": BASE, "packing": "false", "num_train_examples": 24}
SAMPLED = {"num_questions": 40, "num_candidates": 2, "max_new_tokens": 24, "batch_size": 8}
LORA = {"use_peft": "true", "lora_r": 4, "lora_target_modules": "[q_proj, v_proj]", "learning_rate": 1e-3}
ASKED = {"benchmarks": "tiny_1step,tiny_2step", "limit": 40, "batch_size": 8}


def flags(**values: object) -> list[str]:
    return [str(part) for key, value in values.items() for part in (f"--{key}", value)]


def script(name: str, *words: object, **values: object) -> list[str]:
    """A script of the repository by a new interpreter."""
    return [sys.executable, name, *map(str, words), *flags(**values)]


@dataclass(frozen=True)
class World:
    """What commands start from; each part is made when the first command asks for it."""

    once: Once
    data: Path

    @cached_property
    def traces(self) -> Path:
        lines = [json.dumps(solved(number)) + "\n" for number in range(4000)]
        return self.once("traces", lambda out: (out / "traces.jsonl").write_text("".join(lines))) / "traces.jsonl"

    @cached_property
    def verified(self) -> Path:
        return self.once("verified_whole", lambda out: write_verified(out, self.data))

    @cached_property
    def facts(self) -> Path:
        return self.once("facts", lambda out: must(run_script("data_prep/tiny_facts.py", "--names", 4, "--out", out)))

    @cached_property
    def memory(self) -> Path:
        return self._run("short_memory", memory_sft) / "run/final"

    @cached_property
    def adapter(self) -> Path:
        return self._run("adapter", lambda world, out: sft(world, out, **LORA, max_steps=2)) / "run/final"

    @cached_property
    def trained(self) -> Path:
        return self._run("short_sft", sft) / "run"

    @cached_property
    def evaluated(self) -> Path:
        return self._run("short_eval", evaluate) / "run"

    def _run(self, name: str, command: Callable[["World", Path], list[str]]) -> Path:
        return self.once(name, lambda out: must(run_script(*command(self, out)[1:])))


def sft(world: World, out: Path, **changes: object) -> list[str]:
    values = {"dataset_name": world.data / "tiny_math", "output_dir": out / "run", **SHORT, **changes}
    return script("src/sft.py", "recipes/tiny_sft.yaml", **values)


def grpo(world: World, out: Path) -> list[str]:
    rows = {"dataset_name": world.data / "tiny_math", "output_dir": out / "run", "model_name_or_path": BASE}
    return script("src/grpo.py", "recipes/tiny_grpo.yaml", **rows, **GRPO)


def evaluate(world: World, out: Path, **changes: object) -> list[str]:
    values = {"model": BASE, "data_dir": world.data, "output_dir": out / "run", "num_workers": 2, **ASKED, **changes}
    return script("src/eval.py", "recipes/tiny_eval.yaml", **values)


def sample(world: World, out: Path) -> list[str]:
    values = {"dataset_name": world.data / "tiny_math", "output_dir": out / "run", "model_name_or_path": BASE}
    return script("src/sample.py", "recipes/tiny_sample.yaml", **values, **SAMPLED)


def expert_iteration(world: World, out: Path) -> list[str]:
    values = {
        "dataset_name": world.data / "tiny_math", "output_dir": out / "run", "model_name_or_path": BASE, **SAMPLED,
        "num_rounds": 1, "limit": 4, "benchmarks": "tiny_1step", "data_dir": world.data, "accept": "best",
        "select": "all_correct",
    }  # fmt: skip
    return script("src/expert_iteration.py", "recipes/tiny_ei.yaml", **values)


def on_answers(name: str, recipe: str, dataset: str, **changes: object) -> Callable[[World, Path], list[str]]:
    """A trainer that learns from verified answers."""

    def command(world: World, out: Path) -> list[str]:
        values = {"model_name_or_path": BASE, "dataset_name": world.verified / dataset, "output_dir": out / "run"}
        return script(f"src/{name}.py", f"recipes/{recipe}.yaml", **{**values, **PAIRS, **changes})

    return command


def memory_sft(world: World, out: Path) -> list[str]:
    facts = world.facts
    values = {
        "model_name_or_path": facts / "base", "dataset_name": facts / "train.json", "cache_path": facts / "bank.pt",
        "validation_name": facts / "validation.json", "knowledge_num": 64, "max_steps": 6, "save_steps": 2,
        "per_device_train_batch_size": 16, "output_dir": out / "run",
    }  # fmt: skip
    return script("src/memory_sft.py", "recipes/tiny_memory.yaml", **values)


def memory_eval(world: World, out: Path) -> list[str]:
    asked = ("--questions", world.facts / "validation.json", "--out", out / "run", "--max-new-tokens", 3)
    return script("src/memory_eval.py", world.memory, *asked, "--batch-size", 4)


def study(world: World, out: Path) -> list[str]:
    content = {
        "recipe": "recipes/tiny_sft.yaml", "eval_recipe": "recipes/tiny_eval.yaml",
        "grid": {"learning_rate": [1e-3, 2e-3]}, "output_dir": str(out / "run"),
        "override": {**SHORT, "dataset_name": str(world.data / "tiny_math")},
        "eval_override": {**ASKED, "data_dir": str(world.data), "limit": 8},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.yaml").write_text(yaml.safe_dump(content))
    return script("src/study.py", out / "study.yaml")


def merge(world: World, out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    return script("src/merge.py", world.adapter, out / "run")


def report(world: World, out: Path) -> list[str]:
    read = (world.evaluated, "--runs", world.trained, "--data_dir", world.data)
    return script("src/report.py", *read, "--out", out / "run", "--title", "a report")


def data_report(world: World, out: Path) -> list[str]:
    return script("src/data_report.py", world.data / "tiny_math", "--out", out / "run")


def pairs(world: World, out: Path) -> list[str]:
    return script("data_prep/preference_pairs.py", world.verified / "all", "--out", out / "run")


def tiny_math(world: World, out: Path) -> list[str]:
    return script("data_prep/tiny_math.py", "--out", out / "run", "--train", 3000, "--test", 100)


def filter_traces(world: World, out: Path) -> list[str]:
    asked = ("--out", out / "run", "--max-tokens", 256, "--processes", 2, *CHAT)
    return script("data_prep/filter_traces.py", world.traces, *asked)


COMMANDS: dict[str, Callable[[World, Path], list[str]]] = {
    "tiny_math": tiny_math, "filter_traces": filter_traces, "sft": sft,
    "sft, two processes": lambda world, out: [*TWO, *sft(world, out)[1:]],
    "grpo": grpo, "eval": evaluate, "sample": sample, "expert_iteration": expert_iteration,
    "dpo": on_answers("dpo", "tiny_dpo", "few_pairs"), "kto": on_answers("kto", "tiny_kto", "few_outcomes"),
    "reward_model": on_answers("reward_model", "tiny_reward_model", "few_pairs"),
    "value": on_answers("value", "tiny_value", "few_outcomes"),
    "distill": on_answers(
        "distill", "tiny_distill", "tiny_math", model_name_or_path=REPOSITORY / "assets/tiny_half", random_init="true",
        **STUDENT,
    ),
    "memory_sft": memory_sft, "memory_eval": memory_eval, "study": study, "merge": merge, "report": report,
    "data_report": data_report, "preference_pairs": pairs,
}  # fmt: skip
