"""One checkpoint on one benchmark: ask as trained, sample, grade, count."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from posttrain import atomic, grading, lineage
from posttrain.benchmarks import Benchmark
from posttrain.errors import PosttrainError
from posttrain.options import EvalOptions
from posttrain.prompts import render_prompt
from posttrain.results import SCHEMA_VERSION
from posttrain.rope import rope_of
from posttrain.sampling import Decoding, Sampler

QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")


def load_checkpoint(options: EvalOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer of a directory (an adapter too) or of the hub; never code, never pickle."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, use_safetensors=True)
    return model.to(device), tokenizer


def choose_prompt(options: EvalOptions, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt of the recipe, or the one the checkpoint was trained with; for a base model its chat template."""
    if options.prompt != "trained":
        return options.prompt
    record = lineage.read_lineage(options.model)
    if record and record["prompt"] != "none":
        return record["prompt"]
    return "chat" if tokenizer.chat_template else "question_only"


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a completion: those of the generation config, which training sets, and the tokenizer's own.

    Also Qwen's two ends, where the tokenizer has them: a base model lists one, writes the other, and would run on into
    a question of its own, whose box would then be the last.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    known = tokenizer.get_added_vocab()
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id, *map(known.get, QWEN_ENDS)) if i is not None}))


def describe_checkpoint(model: PreTrainedModel, options: EvalOptions) -> dict[str, Any]:
    """What was evaluated: path, run, digest of the weights, rotary base in force."""
    record = lineage.read_lineage(options.model)
    files = sorted(Path(options.model).glob("*.safetensors"))
    return {
        "name": options.model,
        "revision": getattr(model.config, "_commit_hash", None),
        "run_id": record["run_id"] if record else None,
        "weights_sha256": {path.name: atomic.sha256_file(path) for path in files},
        "rope": rope_of(model.config.get_text_config()),
    }


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
        "expected_samples": len(benchmark.rows) * options.num_samples,
        "checkpoint": checkpoint,
        "grader": {"name": options.grader, "version": grading.VERSION},
        "prompt": prompt,
        "decoding": {**decoding.as_record(), "num_samples": options.num_samples},
        "backend": sampler.backend,
        "packages": lineage.package_versions(),
    }


def render_questions(
    benchmark: Benchmark, prompt: str, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, positions: int
) -> tuple[list[str], list[list[int]]]:
    """Prompts as text and as ids; raises where a prompt and its completion would not fit the model's positions."""
    texts = [render_prompt(prompt, row["prompt"], tokenizer) for row in benchmark.rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids))
    if longest + max_new_tokens > positions:
        raise PosttrainError(
            f"{benchmark.name}: the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but "
            f"the model's max_position_embeddings is {positions}; lower max_new_tokens"
        )
    return texts, ids
