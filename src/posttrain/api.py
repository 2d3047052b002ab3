"""Train from Python with the same scripts, recipes and run directories as from the shell."""

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import lineage
from posttrain.errors import PosttrainError
from posttrain.launching import forgotten_afterwards
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import override_arguments, read_entries

SCRIPTS = Path(__file__).parents[1]
TRACKER_VARIABLES = (  # that posttrain.training.callbacks sets for a run
    "TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_MODE", "SWANLAB_LOG_DIR", "SWANLAB_MODE", "TRACKIO_DIR",
)  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reached. `metrics` are the lines of metrics.jsonl, `losses` those of its training steps."""

    final: Path
    steps: int
    losses: list[float]
    best_metric: float | None
    metrics: list[dict[str, Any]]


def train(recipe: str | Path, overrides: Mapping[str, Any] | None = None, callbacks: Sequence[Any] = ()) -> TrainResult:
    """Run a recipe in this process, or go on with its run; a finished one is only read.

    `overrides` are fields of the recipe, `callbacks` transformers' TrainerCallbacks, classes or instances. Raises
    PosttrainError where the command would print it. For several processes, `accelerate launch` your script.
    """
    entries, _ = read_entries(Path(recipe))
    values = {entry.key: entry.value for entry in entries} | dict(overrides or {})
    main = script_main(str(values.get("trainer")), Path(recipe))
    with own_trackers(), forgotten_afterwards():
        main([str(recipe), *override_arguments(overrides or {})], callbacks)
    return read_result(Path(values["output_dir"]))


@contextmanager
def own_trackers() -> Iterator[None]:
    """Forget afterwards where this run's trackers write, or the next run in this process would write there too."""
    before = {name: os.environ.get(name) for name in TRACKER_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def script_main(trainer: str, recipe: Path) -> Callable[..., None]:
    """`main` of the script that runs recipes of `trainer`; raises PosttrainError where it runs as a command only."""
    path = SCRIPTS / f"{trainer}.py"
    if trainer not in METHODS or not path.is_file():
        raise PosttrainError(f"{recipe}: trainer: {trainer!r}: expected one of {', '.join(METHODS)}")
    spec = importlib.util.spec_from_file_location(f"posttrain_script_{trainer}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if "callbacks" not in inspect.signature(module.main).parameters:
        command = METHODS[trainer].command(str(recipe))
        raise PosttrainError(f"{recipe}: trainer: {trainer}: runs as a command only: {command}")
    return module.main


def read_result(output_dir: Path) -> TrainResult:
    """The result of a finished run; raises PosttrainError where it is not finished, or not as it was written."""
    record = lineage.read_record(output_dir, {"result": ({"steps": int}, type(None))})
    if not record or not record["finished"] or not record["result"]:
        raise PosttrainError(f"{output_dir}: holds no finished run; start its command again to finish it")
    metrics = lineage.read_metrics(output_dir, record)
    losses = [line["loss"] for line in metrics if "loss" in line]
    result = record["result"]
    return TrainResult(output_dir / "final", result["steps"], losses, result.get("best_metric"), metrics)
