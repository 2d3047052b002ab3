"""Load a model for training, and choose which weights train: all, an adapter, or all but frozen ones."""

import re
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from posttrain import lineage
from posttrain.data.encode import load_tokenizer as load_tokenizer  # light scripts take it from there
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.models import packed_attention
from posttrain.models.loading import read_config
from posttrain.models.rope import check_live, override, rope_of
from posttrain.models.source import check_weights
from posttrain.recipe.options import StrategyOptions


def load_model(
    model: ModelConfig, chosen: StrategyOptions, hardware: Hardware, seed: int, random_init: bool = False
) -> PreTrainedModel:
    """The model in the recipe's dtype and rope with the machine's attention; weights as safetensors only.

    float32 is the default of TRL's ModelConfig and ours: bf16 autocast over it keeps master weights, while pure bf16
    weights lose most updates of a small learning rate to rounding.
    """
    packed_attention.register()
    dtype = "auto" if model.dtype == "auto" else getattr(torch, model.dtype or "float32")
    options = {"dtype": dtype, "attn_implementation": hardware.attn_implementation}
    name, revision = model.model_name_or_path, model.model_revision
    config = read_config(str(name), revision)
    override(config, chosen.rope_theta, chosen.max_position_embeddings, str(name))
    set_seed(seed)
    if random_init:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    check_weights(str(name))
    loaded = AutoModelForCausalLM.from_pretrained(
        name,
        config=config,
        revision=revision,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=get_quantization_config(model),
        **options,
    )
    check_live(loaded, str(name))
    return loaded


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: StrategyOptions, hardware: Hardware, where: str,
    max_length: int | None = None,
) -> None:  # fmt: skip
    """What every method does to a loaded model: freeze what `where`, the recipe, freezes, and refuse what cannot be.

    max_length: tokens of the longest row, where rows are known before training
    """
    widen(tokenizer, model)
    freeze(model, chosen, where)
    if max_length is not None:
        check_context(model, max_length, where)
    packed_attention.check_supported(model, hardware.path or where)


def check_context(model: PreTrainedModel, max_length: int, where: str) -> None:
    """Raise where rows may be longer than the positions the model knows."""
    longest = model.config.get_text_config().max_position_embeddings
    if max_length > longest:
        raise PosttrainError(f"{where}: max_length: {max_length}: the model's max_position_embeddings is {longest}")


def widen(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Let the tokenizer's own limit, which vLLM obeys too, not be below the model's positions."""
    positions = model.config.get_text_config().max_position_embeddings
    tokenizer.model_max_length = max(tokenizer.model_max_length, positions)


def describe_model(model: PreTrainedModel, arguments: ModelConfig) -> dict[str, Any]:
    """What the weights are: name, resolved commit, and the lineage they came with."""
    name = arguments.model_name_or_path or ""
    parent = lineage.read_lineage(name)
    return {
        "name": name,
        "revision": getattr(model.config, "_commit_hash", None),
        "parent_run": parent["run_id"] if parent else None,
        "rope": rope_of(model.config.get_text_config()),
    }


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
