"""Load a checkpoint for use: its tokenizer, its configuration, its weights, and where its answers end."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain import atomic, lineage
from posttrain.data.encode import load_tokenizer as load_tokenizer  # light scripts take it from there
from posttrain.errors import PosttrainError
from posttrain.models.rope import check_live, override, rope_of


def set_generation_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the generation config stop at the end token that is trained, and nothing else."""
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config.do_sample is not True:  # a greedy config must not carry sampling values, or saving fails
        model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None


QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its weights are loaded; for an adapter, its base's configuration."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    generation_config: GenerationConfig

    @property
    def positions(self) -> int:
        return self.config.get_text_config().max_position_embeddings


def read_checkpoint(name: str) -> Checkpoint:
    """Tokenizer and configuration of a directory or of the hub; raises PosttrainError where no end token is named."""
    adapter = Path(name) / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise PosttrainError(f"{name}: no tokenizer or configuration: {' '.join(str(error).split())[:300]}") from error
    try:
        generation = GenerationConfig.from_pretrained(base)
    except OSError:  # a checkpoint may have none
        generation = GenerationConfig.from_model_config(config)
    if base != name and (record := lineage.read_lineage(name)):  # an adapter; its base's config knows nothing of it
        trained = record["rope"]["trained"]
        override(config, trained["rope_theta"], trained["max_position_embeddings"], name)
    checkpoint = Checkpoint(name, tokenizer, config, generation)
    if not stop_ids(checkpoint):
        raise PosttrainError(f"{name}: neither tokenizer nor generation_config.json names an end token; add eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(stop_ids(checkpoint)[0])
    return checkpoint


def load_model(checkpoint: Checkpoint, dtype: str) -> PreTrainedModel:
    """Weights of a directory (an adapter too) or of the hub under the checkpoint's config; never code or pickle."""
    name, config = checkpoint.name, checkpoint.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=kind, use_safetensors=True)
    except SafetensorError as error:
        raise PosttrainError(f"{name}: the weights cannot be read ({error}); copy or save them again") from error
    check_live(model, name)
    return model.to(device)


def choose_prompt(wanted: str, model: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt that is wanted; `trained` is the one the checkpoint was trained with, of others the chat template."""
    if wanted != "trained":
        return wanted
    record = lineage.read_lineage(model)
    if record and record["prompt"] != "none":
        return record["prompt"]
    return "chat" if tokenizer.chat_template else "question_only"


def stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Tokens that end a completion: those of the generation config, which training sets, and the tokenizer's own.

    Also Qwen's two ends, where the tokenizer has them: a base model lists one, writes the other, and would run on into
    a question of its own, whose box would then be the last.
    """
    configured, tokenizer = checkpoint.generation_config.eos_token_id, checkpoint.tokenizer
    ids = configured if isinstance(configured, list) else [configured]
    known = tokenizer.get_added_vocab()
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id, *map(known.get, QWEN_ENDS)) if i is not None}))


def load_merged(checkpoint: Checkpoint, dtype: str) -> PreTrainedModel:
    """As `load_model`, an adapter merged into its base."""
    adapter = Path(checkpoint.name) / "adapter_config.json"
    if not adapter.is_file():
        return load_model(checkpoint, dtype)
    base = replace(checkpoint, name=json.loads(adapter.read_text())["base_model_name_or_path"])
    return PeftModel.from_pretrained(load_model(base, dtype), checkpoint.name).merge_and_unload()


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was evaluated: path, run, digest of the weights, rotary base in force."""
    record = lineage.read_lineage(checkpoint.name)
    files = sorted(Path(checkpoint.name).glob("*.safetensors"))
    return {
        "name": checkpoint.name,
        "revision": getattr(checkpoint.config, "_commit_hash", None),
        "run_id": record["run_id"] if record else None,
        "weights_sha256": {path.name: atomic.sha256_file(path) for path in files},
        "rope": rope_of(checkpoint.config.get_text_config()),
    }
