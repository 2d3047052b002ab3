"""A recipe, rehearsed: what can be known of it on paper, then three steps of it with a small model on this machine."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.console import say
from posttrain.data.manifest import check_dataset
from posttrain.errors import PosttrainError
from posttrain.hardware import parse_config
from posttrain.locks import lock
from posttrain.pipelines import planning
from posttrain.pipelines.rehearsal import forked, here, paper, run, small_data, stand_in
from posttrain.pipelines.rehearsal.checks import BENCHMARKS, check_benchmarks, checks_of
from posttrain.pipelines.rehearsal.faults import LEFT_OUT, Check, Findings, Lines, NotHere
from posttrain.pipelines.rehearsal.page import as_record, page, summary
from posttrain.pipelines.rehearsal.stages import Stages
from posttrain.plan.page import verdict
from posttrain.plan.recipe_plan import Plan
from posttrain.plan.shapes import ShapeError
from posttrain.recipe.methods import Method, find_method
from posttrain.recipe.reader import Recipe, read_entries, read_recipe

RECORD = "rehearsal.json"


@dataclass(frozen=True)
class Asked:
    """What is rehearsed, where it writes, and what is known of the machine that is meant.

    `made_up` lets rows of the tiny world stand for a dataset that is not prepared. `disk` is in GiB. `paper` is without
    running anything.
    """

    recipe: Path
    config: Path
    out: Path
    overrides: Sequence[str] = ()
    places: stand_in.Places = field(default_factory=stand_in.Places)
    gpus: str | None = None
    disk: float | None = None
    made_up: bool = False
    paper: bool = False


@dataclass
class Rehearsal:
    """What becomes known on the way."""

    asked: Asked
    method: Method
    findings: Findings
    recipe: Recipe | None = None
    config: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    source: stand_in.Source | None = None
    tokenizer: Any = None
    dataset: Path | None = None  # prepared, or made up

    @property
    def values(self) -> dict[str, Any]:
        assert self.recipe is not None
        return self.recipe.values

    @property
    def model_key(self) -> str:
        return "model" if self.method.name == "eval" else "model_name_or_path"


def rehearse(asked: Asked) -> Findings:
    """Rehearse a recipe, say what was found, and keep it in `asked.out`; faults are in what is returned."""
    started = time.monotonic()
    trainer = next((entry.value for entry in read_entries(asked.recipe)[0] if entry.key == "trainer"), None)
    if trainer is None:
        raise PosttrainError(f"{asked.recipe}: expected a recipe, which names a trainer")
    method = find_method(str(trainer))
    lines = Lines.of(asked.recipe, list(asked.overrides), method.fields)
    rehearsal = Rehearsal(asked, method, Findings(lines))
    asked.out.mkdir(parents=True, exist_ok=True)
    for step in (read, find_model, find_data, look_on_paper, *(() if asked.paper else (run_here,))):
        step(rehearsal)
        if rehearsal.findings.failed:
            break
    return tell(rehearsal, time.monotonic() - started)


def tell(rehearsal: Rehearsal, seconds: float) -> Findings:
    """Print the page and write its record."""
    asked, findings, plan = rehearsal.asked, rehearsal.findings, rehearsal.plan
    title = f"rehearsal of {asked.recipe} for {asked.config}"
    text = "" if plan is None else verdict(plan)
    say(page(findings, title, text, seconds, str(asked.out)))
    atomic.write_json(asked.out / RECORD, as_record(findings, text, seconds))
    return findings


def read(rehearsal: Rehearsal) -> None:
    """The recipe, the accelerate config, and the plan of both."""
    asked, findings = rehearsal.asked, rehearsal.findings
    with findings.check("recipe") as told:
        rehearsal.recipe = read_recipe([str(asked.recipe), *asked.overrides], rehearsal.method.name)
        told.text = f"{len(rehearsal.values)} keys"
    config_lines = Lines.of(asked.config, [], {}) if asked.config.is_file() else findings.lines
    of_config = Findings(config_lines)
    with of_config.check("accelerate config") as told:
        if not asked.config.is_file():
            raise PosttrainError(f"{asked.config}: no such file; expected one of accelerate_configs/")
        rehearsal.config = parse_config(str(asked.config), asked.config.read_text())
        told.text = f"{rehearsal.config.get('num_processes', 1)} × {rehearsal.config.get('distributed_type', 'NO')}"
    findings.checks += of_config.checks
    if findings.failed:
        return
    with findings.check("plan", ("per_device_train_batch_size", rehearsal.model_key)) as told:
        machine = planning.machine_of(asked.config, asked.gpus, None)
        try:
            found = planning.plans_of(asked.recipe, asked.config, machine, list(asked.overrides))
        except ShapeError as unknown:
            raise NotHere(str(unknown)) from unknown
        (rehearsal.plan,) = found.values()
        if rehearsal.plan.fits is False:
            raise PosttrainError(verdict(rehearsal.plan))
        told.text = "fits" if rehearsal.plan.fits else "made; whether it fits is known with --gpus, as 8xH100"


def find_model(rehearsal: Rehearsal) -> None:
    """The small model in place of the recipe's, and the one in place of its teacher."""
    from posttrain.data.encode import load_tokenizer
    from posttrain.data.sources import tiny_facts

    values, findings, asked = rehearsal.values, rehearsal.findings, rehearsal.asked
    key = rehearsal.model_key
    with findings.check("model", (key,)) as told:
        name = str(values[key])
        if rehearsal.method.name == "memory_sft" and asked.made_up and name.startswith("data/"):
            name = str(asked.out / "made_up_base")  # what data_prep/tiny_facts.py writes beside its facts
            tiny_facts.write_base(Path(name), 0)
        source = stand_in.find_source(name, asked.places, values.get("model_revision"))
        layers = stand_in.layers_needed(values, source.shape)
        rehearsal.source, model = source, asked.out / "model"
        told.text = stand_in.write_stand_in(source, model, layers, values.get("eos_token"))
        rehearsal.tokenizer = load_tokenizer(str(model), None, values.get("eos_token"))
        findings.differences["model"] = told.text
    teacher = values.get("teacher_model_name_or_path")
    if teacher and not findings.failed:
        with findings.check("teacher", ("teacher_model_name_or_path",)) as told:
            theirs = stand_in.find_source(str(teacher), asked.places, values.get("teacher_model_revision"))
            stand_in.write_stand_in(theirs, asked.out / "teacher", None, None)
            tokenizer = load_tokenizer(str(asked.out / "teacher"), None, None)
            told.text = paper.check_teacher(rehearsal.tokenizer, source.shape, theirs, tokenizer)


def find_data(rehearsal: Rehearsal) -> None:
    """The recipe's dataset, or rows that stand for it."""
    values, asked = rehearsal.values, rehearsal.asked
    if "dataset_name" not in values:
        return
    path = Path(str(values["dataset_name"]))
    if path.exists() or not asked.made_up:
        with rehearsal.findings.check("dataset", ("dataset_name",)) as told:
            if not path.exists():
                commands = "; ".join(data_commands(asked.recipe)) or "a script of data_prep/"
                raise PosttrainError(
                    f"dataset_name: {path}: is not prepared: {commands}; with --stand-in-data rows are made up"
                )
            told.text = str(path)
            if path.is_dir():
                manifest = check_dataset(path)
                told.text = ", ".join(f"{file['rows']:,} {name}" for name, file in manifest["files"].items())
        rehearsal.dataset = path
        return
    with rehearsal.findings.check("dataset", ("dataset_name",)):
        rehearsal.dataset = asked.out / "made_up"
        if rehearsal.method.name == "memory_sft":
            small_data.make_up_facts(rehearsal.tokenizer, int(values["knowledge_length"]), rehearsal.dataset)
        else:
            small_data.make_up(rehearsal.method.name, str(values["prompt"]), rehearsal.dataset)
        raise NotHere(f"{path} is not prepared; rows of the tiny world stand for it")


def data_commands(recipe: Path) -> list[str]:
    """The commands of a recipe's header that prepare its data."""
    header = [line.removeprefix("#").split("  #")[0].strip() for line in recipe.read_text().splitlines()]
    return [line for line in header if line.startswith(("python data_prep/", "python src/sample.py", "make demo"))]


def look_on_paper(rehearsal: Rehearsal) -> None:
    """Everything that is known before a process starts."""
    values, findings, asked, name = rehearsal.values, rehearsal.findings, rehearsal.asked, rehearsal.method.name
    if rehearsal.plan and rehearsal.method.library and (asked.disk or rehearsal.config.get("use_cpu")):
        with findings.check("disk", ("output_dir",)) as told:
            told.text = paper.check_disk(rehearsal.plan, asked.disk, Path(str(values["output_dir"])))
    if any(values.get(key) for key in BENCHMARKS):
        with findings.check("benchmarks", BENCHMARKS) as told:
            told.text = check_benchmarks(values, asked.made_up)
    if rehearsal.dataset is None or name == "memory_sft":
        return
    looked = paper.Paper(
        rehearsal.recipe, rehearsal.source, rehearsal.tokenizer, check_dataset(rehearsal.dataset),
        int(rehearsal.config.get("num_processes") or 1), rehearsal.dataset,
    )  # fmt: skip
    for title, check, keys in checks_of(looked, asked.out / "model", rehearsal.plan):
        with findings.check(title, keys) as told:
            told.text = check()


def run_here(rehearsal: Rehearsal) -> None:
    """Three steps, killed and resumed, and all that comes after training."""
    asked, values, findings = rehearsal.asked, rehearsal.values, rehearsal.findings
    config, differences = here.accelerate_here(rehearsal.config)
    findings.differences |= differences | here.differences_of(values, rehearsal.config)
    bank = [Path(str(values.get("cache_path"))), asked.out / "made_up" / small_data.BANK]
    if rehearsal.method.name == "memory_sft" and not any(path.exists() for path in bank):
        findings.checks.append(Check("run", LEFT_OUT, f"{values.get('cache_path')}: the bank is not prepared"))
        return
    if rehearsal.dataset is not None and rehearsal.dataset.is_dir() and rehearsal.method.name != "memory_sft":
        wrote = small_data.write_some(rehearsal.dataset, check_dataset(rehearsal.dataset), asked.out / "data")
        findings.differences["rows"] = f"{wrote} here, all of {values['dataset_name']} there"
    overrides = here.overrides_here(values, asked.out / "model", asked.out)
    stages = Stages(
        asked.recipe, rehearsal.method.name, here.write_config(config, asked.out / "accelerate.yaml"), asked.out,
        overrides, asked.overrides,
    )  # fmt: skip
    run.run_all(stages, values, findings)


def asked_for(given: argparse.Namespace, overrides: list[str]) -> list[Asked]:
    """What the command line asks for; raises PosttrainError where there is no recipe."""
    recipes = sorted(given.recipe.glob("*.yaml")) if given.recipe.is_dir() else [given.recipe]
    if not recipes or not all(path.is_file() for path in recipes):
        raise PosttrainError(f"{given.recipe}: no such recipe; see recipes/")
    out = given.out or Path("rehearsals")
    return [
        Asked(
            recipe=path,
            config=given.config or here.config_of_header(path),
            out=out if given.out and not given.recipe.is_dir() else out / path.stem,
            overrides=overrides,
            places=stand_in.Places(given.models, given.tokenizer),
            gpus=given.gpus,
            disk=given.disk,
            made_up=given.stand_in_data,
            paper=given.paper,
        )
        for path in recipes
    ]


def rehearse_each(asked: list[Asked]) -> int:
    """Rehearse one recipe after another; returns how many have a fault."""
    lines, failed = [], 0
    if not all(one.paper for one in asked):
        forked.start_server()
    for one in asked:
        started = time.monotonic()
        lock(one.out)
        findings = rehearse(one)
        failed += bool(findings.failed)
        lines.append(f"  {one.recipe}: {summary(findings, time.monotonic() - started, str(one.out))}")
    if len(asked) > 1:
        say("\n".join([f"{len(asked) - failed} of {len(asked)} recipes passed", *lines]))
    return failed
