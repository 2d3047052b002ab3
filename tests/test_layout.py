"""Contracts of the layout: script names, import direction, every recipe and every accelerate config loads."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from posttrain.hardware import ATTENTION, parse_config
from posttrain.recipe.methods import METHODS, find_method
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.schema import MODEL_CONFIG

SCRIPTS = sorted((REPOSITORY / "src").glob("*.py"))
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
PACKAGE = REPOSITORY / "src" / "posttrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Modules that must answer fast: nothing of theirs may import torch, directly or not.
LIGHT = (
    "console", "digests", "errors", "hardware", "launching", "lineage", "locks", "processes", "secrets",
    "grading.formats", "grading.grader", "grading.pool",
    "data.benchmark_rows", "data.benchmarks", "data.manifest", "data.prompts", "data.records", "data.rows",
    "data.sources.gsm8k", "data.sources.omcq", "data.sources.tiny_world", "data.traces.filters",
    "data.traces.inputs", "data.traces.selection", "data.traces.shapes",
    "recipe.contradictions", "recipe.grpo_contradictions", "recipe.grpo_options", "recipe.json_schema",
    "recipe.memory_options", "recipe.methods", "recipe.options",
    "recipe.reader", "recipe.rules", "recipe.schema",
    "models.checkpoints", "models.source",
    "generation.sample",
    "evaluation.agreement", "evaluation.comparison", "evaluation.estimates", "evaluation.published_graders",
    "evaluation.results", "evaluation.samples", "evaluation.scoring",
    "plan.devices", "plan.measured", "plan.page", "plan.recipe_plan", "pipelines.planning",
    "methods.grpo.custom_rewards", "methods.grpo.questions", "methods.grpo.rewards",
    "memory.bank.questions", "memory.command_line",
    "report.content", "report.evaluation_page", "report.figures", "report.formulas", "report.html_page",
    "report.kept.keep", "report.kept.table", "report.questions",
    "pipelines.candidates", "pipelines.expert_iteration", "pipelines.preference_data", "pipelines.rollouts",
    "api",
)  # fmt: skip


# A floor imports itself and those before it; the modules beside the folders are the ground, `api` is the roof.
FLOORS = (
    "ground", "grading", "data", "recipe", "models", "generation", "evaluation", "plan", "training", "methods",
    "memory", "report", "pipelines", "api",
)  # fmt: skip
LONGEST_FILE = 300  # lines
LONGEST_MAIN = 30  # lines: the order of events
LARGEST_FOLDER = 12  # modules: more than a reader takes in at a glance


def floor_of(name: str) -> str:
    """The floor of a dotted module name: the first folder of the package, or the ground."""
    first = name.split(".")[1] if "." in name else "ground"
    return first if first in FLOORS else "ground"


def imported(module: Path) -> list[str]:
    """Dotted names of the package that a module imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    members = [
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return [name for name in plain + members if name.startswith("posttrain.")]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_floor_imports_only_floors_below(module):
    name = ".".join(["posttrain", *module.relative_to(PACKAGE).with_suffix("").parts])
    height = FLOORS.index(floor_of(name))
    above = [other for other in imported(module) if FLOORS.index(floor_of(other)) > height]
    assert not above, f"{name} stands on floor {floor_of(name)} and imports {above}"


def test_every_folder_is_a_floor_and_none_is_crowded():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= set(FLOORS)
    counts = Counter(module.parent for module in MODULES if module.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > LARGEST_FOLDER} == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_hides_no_library(script):
    """`python src/sft.py` puts src/ first on sys.path, so src/types.py would replace the library of that name."""
    names = set(sys.stdlib_module_names) | {"datasets", "torch", "transformers", "trl", "peft", "accelerate", "wandb"}
    assert script.stem not in names


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_nothing_imports_a_script(module):
    scripts = {script.stem for script in SCRIPTS}
    for node in ast.walk(ast.parse(module.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        assert isinstance(node, ast.ImportFrom | ast.Import) is False or not scripts & set(filter(None, names))


def test_light_modules_do_not_import_torch():
    imports = "; ".join(f"import posttrain.{name}" for name in LIGHT)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_builds_its_dataclasses(path):
    method = find_method(yaml.safe_load(path.read_text())["trainer"])
    recipe = read_recipe([str(path)], method.name)
    for config_class in method.classes:
        recipe.build(config_class)
    for source in (*MODEL_CONFIG, method.config(recipe.values)) if method.library else ():
        file, name = source.split(":")
        config_class = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
        recipe.build(config_class, **{} if name == "ModelConfig" else {"bf16": False})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_header_names_its_command(path):
    header = path.read_text().split("trainer:")[0]
    assert re.search(rf"recipes/{path.name}|make eval", header)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_accelerate_config_loads_in_accelerate_and_here(path):
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))
    toggles = parse_config(str(path), path.read_text())["dynamo_config"]
    assert toggles["attn_implementation"] in ATTENTION
    assert isinstance(toggles["gradient_checkpointing"], bool)


@pytest.mark.parametrize("script", METHODS)
def test_help_lists_fields(script):
    command = [sys.executable, f"src/{script}.py", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert "seed: int" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_main_of_a_script_is_read_at_a_glance(script):
    (main,) = [n for n in ast.parse(script.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert main.end_lineno - main.lineno < LONGEST_MAIN


@pytest.mark.parametrize("module", [*MODULES, *SCRIPTS], ids=lambda path: path.name)
def test_a_file_holds_one_idea(module):
    assert len(module.read_text().splitlines()) <= LONGEST_FILE


def test_no_function_is_longer_than_sixty_lines():
    for path in [*MODULES, *SCRIPTS, *Path(REPOSITORY, "data_prep").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.lineno} {node.name}"


def test_no_two_files_of_tests_have_one_name():
    """Or pytest, which imports them by name, ends before the first test."""
    names = Counter(path.name for path in Path(REPOSITORY, "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
