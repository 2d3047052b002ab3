"""Contradictions between keys of a strategy: adapters, quantised weights, frozen layers, early stopping."""

import importlib.util
import re
from typing import Any


def strategy_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Faults of the keys that say which weights train, in what form, and when to stop."""
    faults = _memory_contradictions(path, values)
    if values.get("use_peft"):
        faults += [
            f"{path}: {key}: {values[key]!r}: an adapter (use_peft: true) leaves all weights of its base as they are; "
            f"lora_target_modules and freeze_layers choose where it goes"
            for key in ("freeze_embeddings", "freeze_patterns")
            if values.get(key)
        ]
    for pattern in values.get("freeze_patterns") or []:
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(f"{path}: freeze_patterns: {pattern!r}: not a regular expression: {error}")
    if values.get("early_stopping_patience"):
        if values.get("eval_strategy", "no") == "no":
            faults.append(f"{path}: early_stopping_patience: needs eval_strategy: steps or epoch")
        if not values.get("metric_for_best_model"):
            faults.append(f"{path}: early_stopping_patience: needs metric_for_best_model, such as eval_loss")
    elif "early_stopping_threshold" in values:
        faults.append(f"{path}: early_stopping_threshold: needs early_stopping_patience")
    return faults


def _memory_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = []
    quantised = values.get("load_in_4bit") or values.get("load_in_8bit")
    needs_bitsandbytes = quantised or re.search("8bit|4bit|bnb|paged", values.get("optim", ""))
    if needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        faults.append(f"{path}: 8-bit and 4-bit weights or optimizers need the package: pip install bitsandbytes")
    if quantised and not values.get("use_peft"):
        faults.append(f"{path}: load_in_4bit/load_in_8bit: quantised weights cannot be trained; add use_peft: true")
    return faults
