"""Load a checkpoint for use: its tokenizer, its configuration, its weights, and where its answers end."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain import atomic, digests, lineage
from posttrain.data.encode import load_tokenizer as load_tokenizer  # light scripts take it from there
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import PosttrainError
from posttrain.models.rope import check_live, override, rope_of
from posttrain.models.source import ADAPTER_CONFIG, RESTORE, adapter_base, check_weights


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
    base = adapter_base(Path(name)) if (Path(name) / ADAPTER_CONFIG).is_file() else name
    tokenizer, config = open_tokenizer(name), read_config(base)
    generation = read_generation_config(base, config)
    if base != name and (record := lineage.read_lineage(name)):  # an adapter; its base's config knows nothing of it
        trained = record["rope"]["trained"]
        override(config, trained["rope_theta"], trained["max_position_embeddings"], name)
    checkpoint = Checkpoint(name, tokenizer, config, generation)
    if not stop_ids(checkpoint):
        raise PosttrainError(f"{name}: neither tokenizer nor generation_config.json names an end token; add eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(stop_ids(checkpoint)[0])
    return checkpoint


def read_config(name: str, revision: str | None = None, **changes: Any) -> PretrainedConfig:
    """The configuration of a directory or of the hub, which never brings code along; raises PosttrainError."""
    digests.check_matching(Path(name), ("*.json",), RESTORE)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **changes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise PosttrainError(f"{name}: the configuration cannot be read ({reason}); copy config.json again") from error
    if "/" in str(config._attn_implementation):  # transformers would fetch and run that repository's kernel
        raise PosttrainError(
            f"{name}: config.json: attn_implementation: {config._attn_implementation!r} is a "
            "repository with code, which is never run; remove the line"
        )
    return config


def read_generation_config(name: str, config: PretrainedConfig) -> GenerationConfig:
    """The generation config of a directory or of the hub; what `config` says where there is none."""
    try:
        return GenerationConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if (Path(name) / "generation_config.json").is_file():  # it is there and says nothing: its end tokens are lost
            reason = " ".join(str(error).split())[:300]
            raise PosttrainError(f"{name}: generation_config.json cannot be read ({reason}); copy it again") from error
        if not isinstance(error, OSError):
            raise
        return GenerationConfig.from_model_config(config)


def load_model(checkpoint: Checkpoint, dtype: str) -> PreTrainedModel:
    """Weights of a directory (an adapter too) or of the hub under the checkpoint's config; never code or pickle."""
    name, config = checkpoint.name, checkpoint.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    check_weights(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=kind, use_safetensors=True, trust_remote_code=False
        )
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
    if not (Path(checkpoint.name) / ADAPTER_CONFIG).is_file():
        return load_model(checkpoint, dtype)
    base = replace(checkpoint, name=adapter_base(Path(checkpoint.name)))
    check_weights(checkpoint.name)
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
