"""Hold the planned seconds of a run against its real ones, after a calibration of 20 steps.

    make bench-time                                        # after make demo: tiny recipes, a quarter of an hour
    make bench-time ARGS="--only packed GRPO"
    make bench-time ARGS="recipes/qwen2.5_0.5b_gsm8k_sft.yaml --model_name_or_path models/…"  # one recipe, overridden

Each recipe runs twice in an empty directory, so that no other run speaks for it: for 20 steps, then as it is. The plan
of the second, which its `run.json` keeps, is held against the seconds that it took. Model loading is in neither.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from posttrain import lineage
from posttrain.pipelines.study.batch_size import trainer_of
from posttrain.recipe.reader import override_arguments, read_recipe

REPOSITORY = Path(__file__).resolve().parent.parent
PATHS = ("model_name_or_path", "dataset_name", "teacher_model_name_or_path")
PLAIN = {"packing": False, "per_device_train_batch_size": 16}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("recipes/tiny_sft.yaml", {}),
    "padded": ("recipes/tiny_sft.yaml", {**PLAIN, "gradient_accumulation_steps": 2}),
    "no evaluation": ("recipes/tiny_sft.yaml", {**PLAIN, "eval_strategy": "no", "sample_generations": 0}),
    "LoRA": ("recipes/tiny_sft.yaml", {"use_peft": True, "lora_target_modules": ["all-linear"]}),
    "distillation": ("recipes/tiny_distill.yaml", {"teacher_model_name_or_path": "outputs/tiny_sft_early/final"}),
    "GRPO": ("recipes/tiny_grpo.yaml", {"probe": "off"}),
}


def run(recipe: Path, values: dict[str, Any], name: str, directory: Path) -> dict[str, Any]:
    """Run a recipe's script in a directory, and return its record."""
    trainer = trainer_of(str(recipe))
    found = read_recipe([str(recipe), *override_arguments(values)], trainer).values
    absolute = {key: str(path.resolve()) for key in PATHS if (path := Path(str(found.get(key)))).exists()}
    script = REPOSITORY / f"src/{trainer}.py"
    words = override_arguments({**values, **absolute, "output_dir": f"outputs/{name}", "report_to": "none"})
    environment = os.environ | {"POSTTRAIN_ACCELERATE_CONFIG": str(config())}
    command = [sys.executable, script, recipe.resolve(), *words]
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
    record = lineage.read_record(directory / "outputs" / name)
    if record is None:
        sys.exit(f"error: {name}: the run left no record")
    return record


def config() -> Path:
    return Path(os.environ.get("POSTTRAIN_ACCELERATE_CONFIG", REPOSITORY / "accelerate_configs/cpu.yaml")).resolve()


def compare(name: str, recipe: Path, values: dict[str, Any], steps: int) -> str:
    """A row of the table: planned and real seconds of a recipe."""
    with tempfile.TemporaryDirectory() as directory:
        run(recipe, {**values, "max_steps": steps}, "calibration", Path(directory))
        record = run(recipe, values, "whole", Path(directory))
    planned, took = sum(record["plan"]["seconds"].values()), record["result"]["wall_seconds"]
    return f"| {name} | {record['result']['steps']} | {planned:.1f} | {took:.1f} | {planned / took - 1:+.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, help="a recipe; without one, those of the table")
    parser.add_argument("--steps", type=int, default=20, help="of the calibration")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    asked, fields = parser.parse_known_args()
    settings = {name: (Path(SETTINGS[name][0]), SETTINGS[name][1]) for name in asked.only}
    if asked.recipe:
        keys, words = [word.removeprefix("--") for word in fields[::2]], fields[1::2]
        settings = {asked.recipe.stem: (asked.recipe, dict(zip(keys, map(yaml.safe_load, words), strict=True)))}
    print("| recipe | steps | planned s | took s | error |\n|---|---|---|---|---|", flush=True)
    for name, (recipe, values) in settings.items():
        print(compare(name, recipe, values, asked.steps), flush=True)


if __name__ == "__main__":
    main()
