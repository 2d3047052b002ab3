"""The end that trainers on prepared rows share: train from wherever the run stands, save, and close the record."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import strategy, training
from posttrain.hardware import Hardware
from posttrain.options import StrategyOptions
from posttrain.recipe import Recipe
from posttrain.trainer import WholeRun


def train_to_the_end(
    trainer: WholeRun, recipe: Recipe, options: Any, hardware: Hardware, dataset: dict[str, Any],
    identity: dict[str, Any], record: dict[str, Any] | None, callbacks: Sequence[Any] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train from the last whole checkpoint or the start, then write `final/` and the record that says it is whole.

    Returns the result, with the last evaluation's figures under `evaluation`.
    """
    strategy.add_callbacks(trainer, recipe.build(StrategyOptions), callbacks)
    output_dir = Path(trainer.args.output_dir)
    resumed_from = training.resume_point(output_dir)
    details = training.run_details(recipe, hardware, trainer, options, dataset)
    details["eos_token"] = trainer.processing_class.eos_token
    training.tell(strategy.parameter_report(details["parameters"]))
    record = training.start_or_continue(output_dir, record, identity, details, resumed_from)
    started = time.perf_counter()
    trained = training.trained_already(trainer, resumed_from)
    if trained is None:
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    result = training.run_result(trainer, time.perf_counter() - started)
    result["evaluation"] = last_evaluation(trainer)
    training.save_final(trainer, output_dir, record, result, trained)
    return result


def last_evaluation(trainer: WholeRun) -> dict[str, float]:
    """Figures of the last evaluation but those of its speed; empty where the recipe evaluates nothing."""
    lines = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    speed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return {k: v for k, v in lines[-1].items() if k.startswith("eval_") and k not in speed} if lines else {}


def summary(output_dir: Path, result: dict[str, Any], figure: str) -> str:
    """The last line of a run, with one figure of its last evaluation."""
    held_out = result["evaluation"].get(f"eval_{figure}")
    evaluated = f"held-out {figure} {held_out:.3f}, " if held_out is not None else ""
    losses = f"loss {result['first_loss']} → {result['last_loss']}, " if result["first_loss"] is not None else ""
    return f"{output_dir / training.FINAL}: {result['steps']} steps, {losses}{evaluated}{result['wall_seconds']:.0f} s"
