"""Rounds of expert iteration as plain commands, each of which writes one directory whole or not at all.

Dong et al., RAFT (arXiv 2304.06767), and Gulcehre et al., ReST (arXiv 2308.08998), name the same loop.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from posttrain import atomic, jsonl, lineage, processes
from posttrain.console import command_line, plural, say, warn
from posttrain.data.benchmarks import benchmark_names
from posttrain.errors import PosttrainError
from posttrain.evaluation.results import METRICS_FILE
from posttrain.hardware import VARIABLE, find_config
from posttrain.pipelines.candidates import Rule
from posttrain.pipelines.round_summary import (
    nothing_accepted,
    summarise_evaluation,
    summarise_sampling,
    summarise_training,
)
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import Recipe
from posttrain.recipe.sampling_options import RoundOptions, SampleOptions
from posttrain.training import preemption

ROUND_FILE = "round.json"  # written last: the round is whole
SECONDS_FILE = "seconds.jsonl"
SCRIPTS = Path(__file__).parents[2]
NOT_IDENTITY = (
    "output_dir", "num_rounds", "num_workers", "server", "report_to", "run_name", "project", "disable_tqdm",
    "log_level",
)  # fmt: skip
GREEDY = {"temperature": 0.0, "seed": 0}


class RoundError(PosttrainError):
    """A stage that failed."""


@dataclass(frozen=True)
class Stage:
    """One command and the file that exists once its output is whole (a run's, once it says `finished`)."""

    name: str
    command: list[str]
    mark: Path

    def is_whole(self) -> bool:
        record = lineage.read_json(self.mark)
        return record is not None and bool(record.get("finished", True))


@dataclass(frozen=True)
class Rounds:
    """All rounds of one run; everything a stage needs follows from the recipe and the round's number."""

    recipe: Recipe
    options: RoundOptions
    sampling: SampleOptions
    accelerate_config: str

    @property
    def output_dir(self) -> Path:
        return Path(self.sampling.output_dir)

    @property
    def rule(self) -> Rule:
        o = self.options
        return Rule(o.accept, o.select, o.threshold, o.max_per_question)

    def directory(self, number: int) -> Path:
        """Round 0 is the model before training: it is evaluated only."""
        return self.output_dir / f"round_{number}"

    def model(self, number: int) -> str:
        """The weights after round `number`: of the last round until then that trained."""
        for earlier in range(number, 0, -1):
            if (final := self.directory(earlier) / "sft" / "final").is_dir():
                return str(final)
        return self.sampling.model_name_or_path

    def sample(self, number: int) -> Stage:
        """Candidates for this round's questions, from the weights after the round before."""
        directory, values = self.directory(number), self.recipe.values
        known = {field.name for field in fields(SampleOptions)}
        # Each round draws other questions and samples; the seed fits 32 bits.
        seed = int(lineage.digest([self.sampling.seed, number])[:8], 16)
        recipe = {key: value for key, value in values.items() if key in known} | {
            "trainer": "sample", "model_name_or_path": self.model(number - 1), "seed": seed,
            "output_dir": str(directory / "rollouts"),
        }  # fmt: skip
        command = _script("sample.py", _write_recipe(directory / "sample.yaml", recipe))
        return Stage("sample", command, directory / "rollouts" / METRICS_FILE)

    def select(self, number: int) -> Stage:
        """Training rows from this round's rollouts, or from those of all rounds so far."""
        numbers = range(1, number + 1) if self.options.train_on == "all_rounds" else [number]
        rollouts = [str(self.directory(n) / "rollouts") for n in numbers]
        out, rule = self.directory(number) / "data", self.rule
        command = [sys.executable, str(SCRIPTS.parent / "data_prep" / "rejection.py"), *rollouts, "--out", str(out)]
        command += ["--accept", rule.accept, "--select", rule.select, "--threshold", str(rule.threshold)]
        if rule.max_per_question:
            command += ["--max-per-question", str(rule.max_per_question)]
        return Stage("select", command, out / "manifest.json")

    def train(self, number: int) -> Stage:
        """Supervised fine-tuning on the selected rows, under the accelerate config in use."""
        directory = self.directory(number)
        start = self.sampling.model_name_or_path if self.options.start_from == "base" else self.model(number - 1)
        known = METHODS["sft"].fields
        recipe = {key: value for key, value in self.recipe.values.items() if key in known} | {
            "trainer": "sft", "model_name_or_path": start, "dataset_name": str(directory / "data"),
            "output_dir": str(directory / "sft"),
        }  # fmt: skip
        path = _write_recipe(directory / "sft.yaml", recipe)
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", self.accelerate_config]
        return Stage("train", [*launcher, *_script("sft.py", path)[1:]], directory / "sft" / lineage.RUN_FILE)

    def evaluate(self, number: int) -> Stage:
        """Greedy evaluation of the weights after this round."""
        directory, options = self.directory(number), self.options
        recipe = {
            "trainer": "eval", "model": self.model(number), "benchmarks": options.benchmarks,
            "prompt": self.sampling.prompt, "max_new_tokens": self.sampling.max_new_tokens, **GREEDY,
            "batch_size": options.eval_batch_size, "num_workers": self.sampling.num_workers,
            "data_dir": options.data_dir, "output_dir": str(directory / "evals"), "limit": options.limit,
            "server": self.sampling.server, "send_weights": self.sampling.server is not None,
        }  # fmt: skip
        path = _write_recipe(directory / "eval.yaml", recipe)
        last = benchmark_names(options.benchmarks)[-1]  # benchmarks are evaluated in this order
        return Stage("evaluate", _script("eval.py", path), directory / "evals" / last / METRICS_FILE)


def _script(name: str, recipe: Path) -> list[str]:
    return [sys.executable, str(SCRIPTS / name), str(recipe)]


def _write_recipe(path: Path, values: dict[str, Any]) -> Path:
    atomic.write_bytes(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    return path


def facts(rounds: Rounds) -> dict[str, str]:
    """Lines of the header."""
    options, sampling = rounds.options, rounds.sampling
    asked = "all questions" if sampling.num_questions is None else f"{sampling.num_questions:,} questions"
    return {
        "model": sampling.model_name_or_path,
        "data": f"{sampling.dataset_name}, {asked} a round, {plural(sampling.num_candidates, 'answer')} each",
        "rounds": f"{options.num_rounds}, each from the {options.start_from} weights; round 0 is the model as it is",
    }


def run_stage(stage: Stage, output_dir: Path) -> None:
    """Print and run a stage's command unless its output is whole; raises RoundError where it fails."""
    if stage.is_whole():
        return
    say(f"$ {command_line(stage.command)}")
    with timed(stage, output_dir):
        with processes.running(stage.command) as process, preemption.passed_on():
            code = process.wait()
        if code or not stage.is_whole():
            raise RoundError(
                f"{stage.mark.parent}: the stage {stage.name} ended with exit code {code}; its own error stands above. "
                f"Start this command again to go on from there"
            )


@contextmanager
def timed(stage: Stage, output_dir: Path) -> Iterator[None]:
    """Keep the seconds of the block, unless it fails, as those of the stage."""
    began = time.perf_counter()
    yield
    entry = {"stage": stage.name, "output": str(stage.mark.parent), "seconds": round(time.perf_counter() - began, 1)}
    with (output_dir / SECONDS_FILE).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def run_round(rounds: Rounds, number: int) -> dict[str, Any]:
    """One round from its first unfinished stage on; its record, which is also in `round.json`."""
    directory = rounds.directory(number)
    record = lineage.read_json(directory / ROUND_FILE) or {}
    if {"round", "skipped", "evaluation", *(("accepted",) if number else ())} <= set(record):
        return record  # of another one, all is read again from the stages' own files
    record = {"round": number, "skipped": None}
    if number > 0:
        run_stage(rounds.sample(number), rounds.output_dir)
        sampled = summarise_sampling(directory, [rounds.directory(n) for n in range(1, number)], rounds.rule)
        record |= sampled
        if not sampled["accepted"]:
            record["skipped"] = reason = nothing_accepted(directory / "rollouts")
            warn(f"round {number} is skipped, nothing was accepted: {reason}")
        else:
            run_stage(rounds.select(number), rounds.output_dir)
            run_stage(rounds.train(number), rounds.output_dir)
            record |= summarise_training(directory)
    if record["skipped"]:
        record["evaluation"] = run_round(rounds, number - 1)["evaluation"]  # the weights are the same
    else:
        run_stage(rounds.evaluate(number), rounds.output_dir)
        record["evaluation"] = summarise_evaluation(directory / "evals", rounds.options.benchmarks)
    jsonl.write_sealed(directory / ROUND_FILE, record)
    return record


def accelerate_config() -> str:
    """The accelerate config that training will run under; raises where none is named."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RoundError("expert_iteration.py launches its training itself: start it with python, in one process")
    path = find_config()
    if path is None:
        raise RoundError(f"no accelerate config: put {VARIABLE}=accelerate_configs/….yaml before the command")
    return str(path)


def run_identity(recipe: Recipe, manifest: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the rounds' numbers but their number: more rounds continue a run."""
    kept = {key: value for key, value in recipe.values.items() if key not in NOT_IDENTITY}
    model = recipe.values["model_name_or_path"]
    return {**kept, "dataset_files": lineage.digest(manifest["files"]), "model_files": lineage.fingerprint(model)}


def finish(rounds: Rounds, record: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Point `final` at the last weights of our own and close run.json."""
    last = Path(rounds.model(rounds.options.num_rounds))
    if last.is_relative_to(rounds.output_dir):
        link, temporary = rounds.output_dir / "final", rounds.output_dir / ".final.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(last.relative_to(rounds.output_dir))
        temporary.replace(link)
    result = {"rounds": len(records) - 1, "accuracy": records[-1]["evaluation"]["all"]["value"]}
    closed = {**record, "result": result, "finished": record["finished"] or lineage.now()}
    jsonl.write_sealed(rounds.output_dir / lineage.RUN_FILE, closed)
