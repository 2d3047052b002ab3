"""Stop a run early, and load the callbacks that a recipe names."""

import importlib
from collections.abc import Sequence
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from posttrain.errors import PosttrainError
from posttrain.recipe.options import StrategyOptions


def add_callbacks(trainer: Trainer, options: StrategyOptions, own: Sequence[Any] = ()) -> None:
    """Early stopping where the recipe asks for it, then its callbacks, then those of a caller in Python."""
    if options.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping_patience, options.early_stopping_threshold))
    for name in options.callbacks or []:
        trainer.add_callback(load_callback(name)())
    for callback in own:
        trainer.add_callback(callback)


def check_callbacks(options: StrategyOptions) -> None:
    """Raise for a callback of the recipe that cannot be loaded."""
    for name in options.callbacks or []:
        load_callback(name)


def resume_arguments(options: StrategyOptions) -> dict[str, Any]:
    """Arguments with which a resumed run counts its patience on instead of beginning anew."""
    return {"restore_callback_states_from_checkpoint": True} if options.early_stopping_patience else {}


def load_callback(name: str) -> type[TrainerCallback]:
    """The class that `module.path:Class` names; raises PosttrainError."""
    module, _, attribute = name.partition(":")
    where = f"callbacks: {name!r}"
    if not attribute:
        raise PosttrainError(f"{where}: expected module.path:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PosttrainError(f"{where}: {error}; the module must lie on PYTHONPATH") from error
    if not (isinstance(found, type) and issubclass(found, TrainerCallback)):
        raise PosttrainError(f"{where}: expected a subclass of transformers.TrainerCallback, got {found!r}")
    return found


def stopped_early(arguments: TrainingArguments, states: dict[str, Any]) -> bool:
    """Whether a checkpoint's callback states say that patience had run out when it was saved."""
    state = states.get(EarlyStoppingCallback.__name__)
    if state is None or not arguments.restore_callback_states_from_checkpoint:
        return False
    return state["attributes"]["early_stopping_patience_counter"] >= state["args"]["early_stopping_patience"]
