"""One checkpoint on one benchmark: ask as trained, sample, grade, count."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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

from posttrain import atomic, grading, lineage
from posttrain.benchmarks import Benchmark
from posttrain.errors import PosttrainError
from posttrain.local_server import vllm_server
from posttrain.model_source import check_model
from posttrain.prompts import render_prompt
from posttrain.results import SCHEMA_VERSION
from posttrain.rope import check_live, override, rope_of
from posttrain.sampling import Decoding, HfSampler, Sampler
from posttrain.sampling_options import EvalOptions
from posttrain.server import check_rope
from posttrain.server_sampler import ServerSampler

OWN_SERVER = "vllm"  # as `server`: start one
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


@contextmanager
def open_sampler(
    checkpoint: Checkpoint, options: EvalOptions, rope_overrides: dict[str, Any], texts: list[str]
) -> Iterator[Sampler]:
    """The checkpoint's weights in this process, a server with them, or a server that lives as long as the block.

    rope_overrides: what differs from the checkpoint's own config, as keys of a recipe    texts: rendered prompts
    """
    name, tokenizer = checkpoint.name, checkpoint.tokenizer
    if options.server is None:
        yield HfSampler(load_model(checkpoint, options.dtype), tokenizer, options.batch_size)
    elif options.server == OWN_SERVER:
        check_model(name, may_be_adapter=False)
        with vllm_server({"model_name_or_path": name, **rope_overrides}) as url:
            yield ServerSampler(url, name, tokenizer, options.batch_size)
    elif options.send_weights:
        from posttrain.send_weights import send_weights  # needs vLLM

        model = load_merged(checkpoint, options.dtype)
        context = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) + options.max_new_tokens
        served = send_weights(options.server, name, model, tokenizer, texts, context)
        yield ServerSampler(options.server, served, tokenizer, options.batch_size)
    else:
        check_rope(options.server, rope_overrides, f"make serve MODEL={name}")
        yield ServerSampler(options.server, name, tokenizer, options.batch_size)


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


def samples_per_question(options: EvalOptions, benchmark: Benchmark) -> int:
    """The recipe's, else one where greedy and the benchmark's own k where sampled."""
    return options.num_samples or (benchmark.k if options.temperature else 1)


def evaluation_settings(
    benchmark: Benchmark,
    checkpoint: dict[str, Any],
    prompt: dict[str, str],
    decoding: Decoding,
    options: EvalOptions,
    sampler: Sampler,
) -> dict[str, Any]:
    """Everything needed to get the number again; two results of equal settings are one result."""
    return {
        "schema": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "data_sha256": benchmark.sha256,
        "limit": benchmark.limit,
        "expected_samples": len(benchmark.rows) * samples_per_question(options, benchmark),
        "checkpoint": checkpoint,
        "grader": {"name": options.grader, "version": grading.VERSION},
        "prompt": prompt,
        "decoding": {**decoding.as_record(), "num_samples": samples_per_question(options, benchmark)},
        "backend": sampler.backend,
        "packages": lineage.package_versions(),
    }


def render_questions(
    benchmark: Benchmark, prompt: str, checkpoint: Checkpoint, max_new_tokens: int
) -> tuple[list[str], list[list[int]]]:
    """Prompts as text and as ids; raises where a prompt and its completion would not fit the model's positions."""
    texts = [render_prompt(prompt, row["prompt"], checkpoint.tokenizer) for row in benchmark.rows]
    ids = checkpoint.tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids))
    positions = checkpoint.positions
    if longest + max_new_tokens > positions:
        raise PosttrainError(
            f"{benchmark.name}: the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but "
            f"the model's max_position_embeddings is {positions}; lower max_new_tokens"
        )
    return texts, ids
