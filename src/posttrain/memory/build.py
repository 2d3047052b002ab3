"""Training a memory: bank, rows, model and trainer of one run. `src/memory_sft.py` is the order of events."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from posttrain import atomic
from posttrain.console import say
from posttrain.data.encode import IGNORED, Encoding
from posttrain.data.rows import by_content
from posttrain.hardware import Hardware
from posttrain.memory.attach import attach, freeze_report, spaced_layers
from posttrain.memory.bank.cache import BankShape, bank_digest, load_bank
from posttrain.memory.bank.questions import read_questions
from posttrain.memory.by_token import fitting
from posttrain.memory.by_token.memory import TokenMemory
from posttrain.memory.by_token.states import bank_states
from posttrain.memory.data import Collator, build_rows
from posttrain.memory.files import load_memory, load_published
from posttrain.memory.layer import MemoryConfig, MemoryFault
from posttrain.memory.trainer import EpochOfCollator, MemoryTrainer
from posttrain.models import loading, trainable
from posttrain.recipe.memory_options import PARTS, MemoryOptions
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.run import run_arguments


@dataclass(frozen=True)
class Rows:
    """Questions as tokens with their facts, and what became of them."""

    train: Dataset
    validation: Dataset | None
    used: dict[str, int]
    dropped_too_long: dict[str, int]
    with_fact: int


def files_manifest(options: MemoryOptions) -> dict[str, Any]:
    """What identifies the run's files: names and digests; raises for one that is missing."""
    names = [options.dataset_name, options.validation_name, options.cache_path, options.keys_path]
    files = {}
    for name in filter(None, names):
        if not Path(name).is_file():
            raise MemoryFault(f"{name}: no such file; see docs/memory.md")
        files[name] = {"sha256": atomic.sha256_file(Path(name))}
    return {"files": files, "source": options.dataset_name}


def build_arguments(recipe: Recipe, hardware: Hardware) -> SFTConfig:
    """TRL's arguments for rows that come tokenised, with columns of ours."""
    return run_arguments(
        recipe,
        hardware,
        SFTConfig,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        # The bank is a buffer, and every process has its own counterfactual rows in it.
        ddp_broadcast_buffers=False,
    )


def read_bank(options: MemoryOptions, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The bank of the recipe's cache, checked."""
    shape = BankShape(options.knowledge_num, options.knowledge_length, len(tokenizer), tokenizer.pad_token_id)
    return load_bank(Path(options.cache_path), shape)


def build_encoding(options: MemoryOptions, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> Encoding:
    eos = tokenizer.eos_token if options.append_eos else None
    return Encoding(options.prompt, eos, arguments.max_length, options.too_long)


def load_rows(options: MemoryOptions, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Tokenise and lint the questions, and tie them to their facts."""
    encoding, cache = build_encoding(options, arguments, tokenizer), Path(options.cache_path)
    names = {"train": options.dataset_name}
    if arguments.eval_strategy != "no":
        names["validation"] = options.validation_name
    splits, dropped = {}, {}
    for split, name in names.items():
        limit = options.num_train_examples if split == "train" else None
        splits[split], dropped[split] = build_rows(read_questions(Path(name)), cache, tokenizer, encoding, limit)
    used = {split: len(rows) for split, rows in splits.items()}
    with_fact = sum(fact["row"] >= 0 for fact in splits["train"]["fact"])
    if not with_fact and (options.router_loss_coef or options.counterfactual_prob):
        raise MemoryFault(
            f"{options.dataset_name}: no question's uuid is in the bank's mapping, so router_loss_coef and "
            f"counterfactual_prob have nothing to work on; use the .json of data_prep/omcq.py, or set both to 0"
        )
    return Rows(splits["train"], splits.get("validation"), used, dropped, with_fact)


def build_model(
    recipe: Recipe,
    options: MemoryOptions,
    arguments: SFTConfig,
    hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    bank: Tensor,
) -> PreTrainedModel:
    """The frozen model with a memory in it, from scratch or from an earlier one."""
    model = trainable.load_model(
        recipe.build(ModelConfig), recipe.build(StrategyOptions), hardware, arguments.seed, options.random_init
    )
    trainable.check_context(model, arguments.max_length, recipe.path)
    if options.append_eos:
        loading.set_generation_end(model, tokenizer)
    config = MemoryConfig(
        layers=spaced_layers(options.memory_layers, model.config.num_hidden_layers),
        knowledge_num=options.knowledge_num,
        knowledge_length=options.knowledge_length,
        pad_id=tokenizer.pad_token_id,
        knowledge_dim=options.knowledge_dim,
        num_candidates=options.num_candidates,
        gumbel_temperature=options.gumbel_temperature,
        dropout=options.dropout,
        fusion_rank=options.fusion_rank,
        gate_rank=options.gate_rank,
        reading=options.reading,
        router_layer=options.router_layer,
    )
    states = None
    if options.reading == "tokens":
        path = Path(options.keys_path) if options.keys_path else None
        states = bank_states(model, bank, config.pad_id, options.router_layer, path)
    memory = attach(model, config, bank, states)
    if options.pretrained_sft_model_path:
        start_from(Path(options.pretrained_sft_model_path), memory)
    elif isinstance(memory, TokenMemory) and options.router_steps:
        fit_gate(model, memory, options, arguments, rows)
    if options.keys_path and options.reading == "mean":
        set_keys(Path(options.keys_path), memory)
    for name, parameter in memory.named_parameters():
        # A fitted gate and given keys stay as they are.
        fixed = "memory_gate" in name if options.reading == "tokens" else options.keys_path and name.endswith(".keys")
        parameter.requires_grad_(any(part in name for part in options.trainable) and not fixed)
    say(freeze_report(model))
    return model


def fit_gate(
    model: PreTrainedModel, memory: TokenMemory, options: MemoryOptions, arguments: SFTConfig, rows: Rows
) -> None:
    """Fit the lookup to questions whose facts the bank holds, by what the frozen model says of their prompts."""
    asked = questions_of_the_bank(rows.train, options.router_questions)
    prompts = [row["input_ids"][: sum(label == IGNORED for label in row["labels"])] for row in asked]
    if len(prompts) < 10:
        raise MemoryFault(f"{options.dataset_name}: {len(prompts)} questions about facts of the bank; expected 10")
    states = fitting.states_of_prompts(model, prompts, memory.config.pad_id, options.router_layer)
    targets = torch.tensor([row["fact"]["row"] for row in asked])
    embedding = model.get_input_embeddings().weight
    fitting.fit_gate(memory, embedding, prompts, states, targets, options.router_steps, arguments.seed)


def questions_of_the_bank(rows: Dataset, limit: int) -> list[dict[str, Any]]:
    """Rows whose facts the bank holds, at most `limit`, chosen by content hash: a file may be sorted by relation."""
    return by_content([row | {"id": row["question"]["id"]} for row in rows if row["fact"]["row"] >= 0], limit)


def start_from(path: Path, memory: Any) -> None:
    """Load an earlier memory: a directory of a run, or a state dict, of which is told what did not fit."""
    if path.is_dir():
        load_memory(path, memory)
        return
    found = load_published(path, memory)
    say(
        f"{path}: missing {found.missing or 'none'}, unexpected {found.unexpected or 'none'}, {found.others} tensors "
        f"of another part of the model left aside"
    )


def set_keys(path: Path, memory: Any) -> None:
    """Put product keys of a file, (2, r, knowledge_dim/2), into every layer; raises where they do not fit."""
    try:
        if path.suffix == ".safetensors":
            keys = load_file(path).get("keys")
        else:
            keys = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads the readers to
        raise MemoryFault(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); write it again") from error
    for block in memory.layers.values():
        expected = block.memory_gate.keys
        if not isinstance(keys, Tensor) or keys.shape != expected.shape:
            shape = list(keys.shape) if isinstance(keys, Tensor) else type(keys).__name__
            raise MemoryFault(f"{path}: holds {shape}; expected keys of shape {list(expected.shape)}")
        expected.data.copy_(keys)


def build_trainer(
    recipe: Recipe,
    options: MemoryOptions,
    arguments: SFTConfig,
    hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    bank: Tensor,
) -> MemoryTrainer:
    """The trainer with its model, rows and callbacks."""
    model = build_model(recipe, options, arguments, hardware, tokenizer, rows, bank)
    encoding = build_encoding(options, arguments, tokenizer)
    collator = Collator(
        tokenizer,
        encoding,
        options.knowledge_length,
        options.counterfactual_prob,
        arguments.data_seed or arguments.seed,
    )
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    description = {
        "bank": {"path": options.cache_path, "digest": bank_digest(bank)},
        "keys_path": options.keys_path,
        "model": recipe.values["model_name_or_path"],
        "prompt": options.prompt,
        "eos_token": encoding.eos_token,
    }
    trainer = MemoryTrainer(
        options=options,
        description=description,
        model=model,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        processing_class=tokenizer,
        data_collator=collator,
    )
    trainer.add_callback(EpochOfCollator(collator))
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    return trainer


def describe_dataset(options: MemoryOptions, rows: Rows, manifest: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the questions and of what became of them."""
    return {
        "path": options.dataset_name,
        "files": manifest["files"],
        "used": rows.used,
        "dropped_too_long": rows.dropped_too_long,
        "with_fact": rows.with_fact,
    }


def check_options(options: MemoryOptions, hardware: Hardware) -> None:
    """Raise for what the recipe's rules cannot see."""
    unknown = set(options.trainable) - set(PARTS)
    if unknown or not options.trainable:
        raise MemoryFault(f"trainable: {options.trainable}: expected some of {', '.join(PARTS)}")
    machine = yaml.safe_load(hardware.text or "") or {}
    if machine.get("fsdp_config") or (machine.get("deepspeed_config") or {}).get("zero_stage") == 3:
        raise MemoryFault(
            f"{hardware.path}: every process holds a memory whole; use ddp.yaml, zero1.yaml or zero2.yaml"
        )
