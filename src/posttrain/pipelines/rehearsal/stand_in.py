"""A small model in place of a recipe's own: its architecture, tokenizer, template, vocabulary and positions.

Its weights are random, but for the end token, which is likely: so its answers end, and what comes after sampling has
whole answers to work on.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.models.source import ADAPTER_CONFIG, HUB_NAME, LOCAL_ROOTS, adapter_base
from posttrain.plan.shapes import Shape, base_name, read_shape, recipe_that_writes, shipped

NARROW = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "intermediate_size": 128}
LAYERS = 2
SMALL = 5_000_000  # parameters of a model that is taken as it is
END_SHARE = 0.1  # of the odds, for the end token: answers of ten tokens
CONFIGS = {"qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "llama": "LlamaConfig", "mistral": "MistralConfig"}


class SourceError(PosttrainError):
    """A model whose tokenizer or configuration is not at hand."""


@dataclass(frozen=True)
class Source:
    """Where a model's configuration and tokenizer come from. `eos_token` is what training will have made its end."""

    name: str
    shape: Shape
    directory: Path | None  # with a config.json
    tokenizer: str  # a directory or a name on the hub
    eos_token: str | None = None


@dataclass(frozen=True)
class Places:
    """Where the user keeps models and a tokenizer for machines without the hub."""

    models: Path | None = None
    tokenizer: Path | None = None


def find_source(name: str, places: Places, revision: str | None = None) -> Source:
    """What a recipe's model is made of; raises SourceError or ShapeError where it is not at hand.

    A directory that a recipe of recipes/ will write is what that recipe starts from, with its end token.
    """
    path = Path(name)
    if (path / ADAPTER_CONFIG).is_file():
        return find_source(adapter_base(path), places)
    if (path / "config.json").is_file():
        return Source(name, read_shape(name), path, str(path))
    if not path.is_dir() and (written := recipe_that_writes(path)):
        start = find_source(str(written["model_name_or_path"]), places, written.get("model_revision"))
        return Source(name, start.shape, start.directory, start.tokenizer, written.get("eos_token") or start.eos_token)
    if path.is_dir() or path.parts[:1] in [(root,) for root in LOCAL_ROOTS] or not HUB_NAME.fullmatch(name):
        raise SourceError(f"{name}: has no config.json, and no recipe of recipes/ writes there")
    if (found := _beside(name, places.models)) is not None:
        return Source(name, read_shape(str(found)), found, str(found))
    shape = read_shape(name, revision)  # of the shipped table, or of the hub
    if places.tokenizer is None and _is_in_the_table(name) and not _is_cached(name):
        raise SourceError(f"{name}: its tokenizer is not on this machine; name one of its family by --tokenizer DIR")
    return Source(name, shape, None, str(places.tokenizer or name))


def _beside(name: str, models: Path | None) -> Path | None:
    """The directory of `models` that has the last part of a hub's name, whatever its case."""
    last = name.rpartition("/")[2].lower()
    found = [] if models is None else [p for p in models.iterdir() if p.name.lower() == last]
    return next((path for path in found if (path / "config.json").is_file()), None)


def _is_in_the_table(name: str) -> bool:
    return base_name(name) in shipped() or name in shipped()


def _is_cached(name: str) -> bool:
    """Whether the hub's cache has the tokenizer, or the hub may be asked for it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str) or not HF_HUB_OFFLINE


def write_stand_in(source: Source, out: Path, layers: int | None, eos_token: str | None) -> str:
    """Write the small model of a source with its tokenizer to `out`; returns what it is, in words.

    layers: None for two. A model that is small already keeps its size, and its weights where it has them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from posttrain.data.encode import load_tokenizer
    from posttrain.models.loading import set_generation_end

    try:
        tokenizer = load_tokenizer(source.tokenizer, None, eos_token or source.eos_token)
    except PosttrainError as error:
        if source.directory is not None or str(error).startswith("eos_token"):
            raise
        raise SourceError(f"{error}; or name a tokenizer of its family by --tokenizer DIR") from error
    tokenizer.save_pretrained(out)
    small = source.directory is not None and source.shape.parameters <= SMALL
    if small and list(source.directory.glob("*.safetensors")) and source.name == str(source.directory):
        model = AutoModelForCausalLM.from_pretrained(
            source.directory, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        )
        words = f"{source.name} as it is, {source.shape.parameters:,} parameters"
    else:
        config = AutoConfig.for_model(**_config(source, layers, small))
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        make_end_likely(model, tokenizer.eos_token_id)
        sizes = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
        words = f"{sizes}, {config.vocab_size:,} words, random weights; {source.name} has {source.shape.layers} of "
        words += f"{source.shape.hidden}"
    set_generation_end(model, tokenizer)
    model.save_pretrained(out)
    return words


def _config(source: Source, layers: int | None, small: bool) -> dict[str, Any]:
    """The config.json of the stand-in: that of the source where there is one, narrowed unless it is small already."""
    shape = source.shape
    if source.directory is not None:
        config = json.loads((source.directory / "config.json").read_text())
        config = dict(config.get("text_config") or config)
    else:
        config = {
            "model_type": shape.kind, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions,
            "tie_word_embeddings": shape.tied, "num_hidden_layers": shape.layers,
        }  # fmt: skip
    for name in ("auto_map", "quantization_config", "architectures", "torch_dtype", "transformers_version"):
        config.pop(name, None)
    if small:
        return config
    count = min(shape.layers, layers or LAYERS)
    for name in ("layer_types", "max_window_layers"):
        config.pop(name, None)
    grouped = shape.key_heads < shape.heads
    narrow = {
        **NARROW,
        "num_hidden_layers": count,
        "num_key_value_heads": 1 if grouped else NARROW["num_attention_heads"],
    }
    return {**config, **narrow}


def make_end_likely(model: Any, end: int) -> None:
    """Give a random model's end token a share of about END_SHARE of the odds after any text.

    All embeddings share one direction, which then leads every hidden state; the row of the end token in the output
    layer, which may be the same matrix, has more of it.
    """
    import torch

    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    vocabulary, width = head.shape
    gap = math.log(END_SHARE / (1 - END_SHARE) * vocabulary)  # of the end's logit over the others
    with torch.no_grad():
        embeddings[:, 0] += 1.0
        if head is not embeddings:
            head[:, 0] = 1.0
        head[end, 0] = 1.0 + gap / math.sqrt(width)


def layers_needed(values: dict[str, Any], shape: Shape) -> int | None:
    """Layers that a stand-in must have for a recipe's keys to mean the same: all where it names some of them."""
    named: Sequence[str] = ("freeze_layers", "freeze_patterns", "memory_layers")
    return shape.layers if any(values.get(key) for key in named) else None
