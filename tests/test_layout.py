"""Contracts of the layout: script names, import direction, every recipe and every accelerate config loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from posttrain.hardware import ATTENTION, parse_config
from posttrain.recipe import read_recipe

SCRIPTS = sorted((REPOSITORY / "src").glob("*.py"))
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
MODULES = sorted((REPOSITORY / "src" / "posttrain").rglob("*.py"))
# Modules that must answer fast: nothing of theirs may import torch, directly or not.
LIGHT = (
    "recipe", "recipe_rules", "schema", "options", "errors", "manifest", "rows", "lineage", "hardware", "model_source",
    "benchmarks", "grading", "metrics", "results", "report", "prompts", "tiny_world", "gsm8k",
    "source", "benchmark_source", "comparison", "verifier.pool", "scoring", "forms", "graded", "published_graders",
    "omcq", "page", "formulas", "report_samples", "report_figures", "report_page", "rewards",
    "readers", "shapes", "filters", "selection",
    "rollouts", "candidates", "rounds", "front", "strategy_rules", "preference",
    "memory_options", "memory_overrides", "memory_questions",
)  # fmt: skip


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
    import transformers
    import trl

    from posttrain import memory_options, options, sampling_options

    trainer = yaml.safe_load(path.read_text())["trainer"]
    recipe = read_recipe([str(path)], trainer)
    ours = {"sft": [options.SftOptions], "grpo": [options.GrpoOptions], "eval": [sampling_options.EvalOptions]}
    ours["sample"] = [sampling_options.SampleOptions]
    ours["dpo"], ours["reward_model"] = [options.PairOptions], [options.RewardOptions]
    ours["memory_sft"] = [memory_options.MemoryOptions]
    ours["distill"], ours["value"] = [options.DistillOptions], [options.ValueOptions]
    ours["expert_iteration"] = [options.SftOptions, sampling_options.SampleOptions, sampling_options.RoundOptions]
    for config_class in ours[trainer]:
        recipe.build(config_class)
    offline = trainer == "distill" and not recipe.values.get("on_policy")
    if trainer in ("sft", "expert_iteration", "memory_sft") or offline:
        recipe.build(trl.SFTConfig, bf16=False)
    library = {"grpo": trl.GRPOConfig, "dpo": trl.DPOConfig, "reward_model": trl.RewardConfig}
    library |= {"distill": trl.DistillationConfig, "value": transformers.TrainingArguments}
    if trainer in library and not offline:
        recipe.build(library[trainer], bf16=False)
    if trainer not in ("eval", "sample"):
        recipe.build(trl.ModelConfig)
        recipe.build(options.StrategyOptions)


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


@pytest.mark.parametrize(
    "script",
    ["sft", "grpo", "eval", "sample", "expert_iteration", "memory_sft", "dpo", "reward_model", "distill", "value"],
)
def test_help_lists_fields(script):
    command = [sys.executable, f"src/{script}.py", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert "seed: int" in done.stdout


def test_no_function_is_longer_than_sixty_lines():
    for path in [*MODULES, *SCRIPTS, *Path(REPOSITORY, "data_prep").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.lineno} {node.name}"
