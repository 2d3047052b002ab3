"""Supervised fine-tuning: rows, trainer and record of one run. `src/sft.py` is the order of events."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig, get_peft_config, pack_dataset

from posttrain import attention, training
from posttrain.callbacks import MetricsFile, SampleGenerations, prepare_trackers
from posttrain.encode import Encoding, load_split
from posttrain.hardware import Hardware
from posttrain.lineage import digest
from posttrain.manifest import split_path
from posttrain.options import SftOptions
from posttrain.recipe import Recipe
from posttrain.rows import by_content, read_parquet
from posttrain.trainer import RecipeTrainer


def build_arguments(recipe: Recipe, hardware: Hardware) -> SFTConfig:
    """TRL's arguments for rows that come tokenised from posttrain.encode."""
    return training.build_arguments(
        recipe,
        hardware,
        SFTConfig,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all" if recipe.values.get("packing") else "non_padding",
    )


@dataclass(frozen=True)
class Rows:
    """Tokenised splits, packed where the recipe says so, and what became of the rows."""

    train: Dataset
    validation: Dataset | None
    used: dict[str, int]
    dropped_too_long: dict[str, int]


def load_rows(
    options: SftOptions, manifest: dict[str, Any], arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Tokenise, lint and pack the train split, and the validation split where the recipe evaluates."""
    eos = tokenizer.eos_token if options.append_eos else None
    encoding = Encoding(options.prompt, eos, arguments.max_length, options.too_long)
    evaluates = arguments.eval_strategy != "no"
    splits, used, dropped = {}, {}, {}
    for split in ("train", "validation") if evaluates else ("train",):
        limit = options.num_train_examples if split == "train" else None
        path = split_path(Path(options.dataset_name), manifest, split)
        dataset, dropped[split] = load_split(path, tokenizer, encoding, limit)
        used[split] = len(dataset)
        if arguments.packing:
            dataset = pack_dataset(dataset, arguments.max_length, arguments.packing_strategy)
        splits[split] = dataset.with_format("numpy")  # collates ten times faster than Python lists
    return Rows(splits["train"], splits.get("validation"), used, dropped)


def build_trainer(
    recipe: Recipe, options: SftOptions, arguments: SFTConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> RecipeTrainer:  # fmt: skip
    """The trainer with its model, adapter and callbacks."""
    model_config = recipe.build(ModelConfig)
    model = training.load_model(model_config, hardware, arguments.seed, options.random_init)
    training.check_context(model, arguments.max_length, recipe.path)
    attention.check_supported(model, hardware.path or recipe.path)
    if arguments.packing:
        attention.prove_packing(model, hardware.path or recipe.path, arguments.device)
    if options.append_eos:
        training.set_generation_end(model, tokenizer)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    if options.sample_generations:
        path = Path(options.dataset_name) / "validation.parquet"
        sample = by_content(read_parquet(path), options.sample_generations)
        trainer.add_callback(SampleGenerations(trainer, output_dir, sample, options.prompt))
    return trainer


def describe_dataset(options: SftOptions, rows: Rows, manifest: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the dataset and of what became of its rows."""
    return {
        "path": options.dataset_name,
        "manifest": digest(manifest),
        "source": manifest["source"],
        "used": rows.used,
        "dropped_too_long": rows.dropped_too_long,
    }


def summary(output_dir: Path, result: dict[str, Any]) -> str:
    """The last line of a run."""
    losses = f"loss {result['first_loss']} → {result['last_loss']}, " if result["first_loss"] is not None else ""
    tokens, seconds = result["tokens_seen"], result["wall_seconds"]
    return f"{output_dir / training.FINAL}: {result['steps']} steps, {tokens} tokens, {losses}{seconds:.0f} s"
