"""Which weights a run trains: all, an adapter, or all but frozen ones; and when it stops."""

import importlib
import re
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from trl import ModelConfig, get_peft_config

from posttrain.errors import PosttrainError
from posttrain.options import StrategyOptions

LAYERS = r"\b(?:layers|h|blocks)"  # the list of decoder layers in parameter names: Qwen and Llama, GPT-2, MPT


def freeze(model: PreTrainedModel, options: StrategyOptions, where: str) -> None:
    """Take what the recipe freezes out of training; raises where a key matches nothing or leaves nothing."""
    parameters = dict(model.named_parameters())
    for key, pattern in patterns(options):
        found = [name for name in parameters if re.search(pattern, name)]
        if not found:
            raise PosttrainError(f"{where}: {key}: no parameter matches {pattern!r}; {known_names(model)}")
        for name in found:
            parameters[name].requires_grad_(False)
    if options.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        keys = [k for k in ("freeze_layers", "freeze_embeddings", "freeze_patterns") if getattr(options, k)]
        raise PosttrainError(f"{where}: {', '.join(keys)}: nothing is left to train; freeze less")


def patterns(options: StrategyOptions) -> list[tuple[str, str]]:
    """Key of the recipe and regular expression of parameter names, for everything frozen by name."""
    layers = [("freeze_layers", rf"{LAYERS}\.{index}\.") for index in frozen_layers(options)]
    return layers + [("freeze_patterns", pattern) for pattern in options.freeze_patterns or []]


def frozen_layers(options: StrategyOptions) -> list[int]:
    """Indices of frozen decoder layers."""
    layers = options.freeze_layers or []
    return list(range(layers)) if isinstance(layers, int) else layers


def known_names(model: PreTrainedModel) -> str:
    """What can be frozen, for an error."""
    names = list(model.state_dict())
    layers = {int(found[1]) for name in names if (found := re.search(rf"{LAYERS}\.(\d+)\.", name))}
    return f"the model has {len(layers)} layers and names such as {names[0]} and {names[len(names) // 2]}"


def adapter_config(model_config: ModelConfig, options: StrategyOptions) -> PeftConfig | None:
    """TRL's adapter, kept out of frozen layers; None without use_peft."""
    config = get_peft_config(model_config)
    if config is not None and (layers := frozen_layers(options)):
        config.exclude_modules = rf".*{LAYERS}\.(?:{'|'.join(map(str, layers))})\..*"
    return config


def parameter_counts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable and frozen parameters of every part: embeddings, each layer, and what lies outside of them."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        found = re.search(rf"{LAYERS}\.(\d+)\.", name)
        part = f"layer {found[1]}" if found else re.sub(r"^(?:base_model\.|model\.)+|\.weight$", "", name)
        kind = "trainable" if parameter.requires_grad else "frozen"
        counts.setdefault(part, {"trainable": 0, "frozen": 0})[kind] += size(parameter)
    return counts


def size(parameter: nn.Parameter) -> int:
    """Number of values, also of one that ZeRO-3 has sharded or bitsandbytes packed, two 4-bit values in a byte."""
    return getattr(parameter, "ds_numel", parameter.numel()) * (2 if type(parameter).__name__ == "Params4bit" else 1)


def parameter_report(counts: dict[str, dict[str, int]]) -> str:
    """One line, and one more for each group of parts that are frozen alike."""
    trainable, frozen = (sum(part[kind] for part in counts.values()) for kind in ("trainable", "frozen"))
    head = f"trains {trainable:,} of {trainable + frozen:,} parameters ({trainable / (trainable + frozen):.2%})"
    if not frozen:
        return head
    lines: list[tuple[list[str], dict[str, int]]] = []
    for part, count in counts.items():
        if lines and count == lines[-1][1] and part.startswith("layer "):
            lines[-1][0].append(part)
        else:
            lines.append(([part], count))
    return "\n".join([head, *(f"  {_group(parts):<20}{_counts(count, len(parts))}" for parts, count in lines)])


def _group(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"layers {parts[0].split()[1]}–{parts[-1].split()[1]}"


def _counts(count: dict[str, int], parts: int) -> str:
    return ", ".join(f"{parts * n:,} {kind}" for kind, n in count.items() if n)


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
