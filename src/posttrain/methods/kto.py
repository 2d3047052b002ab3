"""Kahneman-Tversky optimisation: rows and trainer of one run. `src/kto.py` is the order of events."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig, KTOTrainer, ModelConfig

from posttrain.console import warn
from posttrain.data.encode import Encoding, RowError, encode_each
from posttrain.data.manifest import split_path
from posttrain.data.rows import by_content, read_parquet, row_id
from posttrain.hardware import Hardware
from posttrain.methods.sft import Rows
from posttrain.models import loading, trainable
from posttrain.recipe.options import OutcomeOptions, StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.run import run_arguments

BALANCED = (1.0, 4 / 3)  # equation 8 of Ethayarajh et al. 2024 (arXiv 2402.01306)


class OutcomeTrainer(WholeRun, KTOTrainer):
    """KTOTrainer for answers that `load_outcomes` has tokenised and paired."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """TRL would tokenise prompt and completion together, and cut what is too long."""
        return dataset


def build_arguments(recipe: Recipe, hardware: Hardware) -> KTOConfig:
    """TRL's arguments; tokens are counted without padding."""
    return run_arguments(recipe, hardware, KTOConfig, include_num_input_tokens_seen="non_padding")


def load_outcomes(
    options: OutcomeOptions, manifest: dict[str, Any], arguments: KTOConfig, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Answers as ids with `label`, whether they are right, of the splits that the recipe uses.

    The loss compares with an estimate of the divergence from the reference, for which each prompt of a batch also has
    the answer to another one (`KL_completion_ids`); so TRL takes the rows in their order, and here that is a shuffled
    one, drawn from the seed and the rows' content.
    """
    encoding = Encoding(options.prompt, tokenizer.eos_token, arguments.max_length, options.too_long)
    splits, used, dropped = {}, {}, {}
    sizes = {"train": arguments.per_device_train_batch_size, "validation": arguments.per_device_eval_batch_size}
    for name in sizes if arguments.eval_strategy != "no" else ("train",):
        path = split_path(Path(options.dataset_name), manifest, name)
        rows = by_content(read_parquet(path), options.num_train_examples if name == "train" else None)
        if rows and "outcome" not in rows[0]:
            raise RowError(f"{path}: has no column 'outcome'; write it with data_prep/preference_pairs.py --outcomes")
        rows = sorted(rows, key=lambda row: row_id(str(arguments.seed), row["id"]))
        encoded = [_labelled(row, one) for row, one in zip(rows, encode_each(rows, tokenizer, encoding), strict=True)]
        kept = [row for row in encoded if len(row["prompt_ids"]) + len(row["completion_ids"]) <= arguments.max_length]
        if not kept or (len(kept) < len(rows) and options.too_long == "error"):
            raise RowError(
                f"{path}: {len(rows) - len(kept)} of {len(rows)} answers are longer than max_length "
                f"({arguments.max_length}); raise it, or write too_long: drop"
            )
        check_balance([row["label"] for row in kept], arguments, path, name == "train")
        splits[name], used[name] = Dataset.from_list(with_others_answers(kept, sizes[name])), len(kept)
        dropped[name] = len(rows) - len(kept)
    return Rows(splits["train"], splits.get("validation"), used, dropped)


def _labelled(row: dict[str, Any], one: Any) -> dict[str, Any]:
    if one.fault:
        raise RowError(one.fault)
    ids = one.ids.tolist()
    return {"prompt_ids": ids[: one.n_prompt], "completion_ids": ids[one.n_prompt :], "label": row["outcome"] == 1.0}


def with_others_answers(rows: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Each row with the answer of the row before it in its batch, the first with that of the last, as in TRL."""
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    others = [one["completion_ids"] for each in batches for one in (each[-1:] + each[:-1])]
    return [{**row, "KL_completion_ids": other} for row, other in zip(rows, others, strict=True)]


def check_balance(labels: list[bool], arguments: KTOConfig, path: Path, train: bool) -> None:
    """Raise where all answers have one label; say which weight would balance the two where they are far from it."""
    right = sum(labels)
    wrong = len(labels) - right
    if not train:
        return
    if not right or not wrong:
        raise RowError(
            f"{path}: {right} right and {wrong} wrong answers: expected both; sample from a weaker model or harder "
            f"questions, or lower the temperature"
        )
    ratio = arguments.desirable_weight * right / (arguments.undesirable_weight * wrong)
    if not BALANCED[0] - 0.01 <= ratio <= BALANCED[1] + 0.01:
        warn(
            f"{path}: {right} right and {wrong} wrong answers weigh as {ratio:.2f} to 1, where 1 to 1.33 is meant: "
            f"desirable_weight: {arguments.undesirable_weight * wrong / right:.2f} would balance them"
        )


def build_trainer(
    recipe: Recipe, options: OutcomeOptions, arguments: KTOConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, rows: Rows,
) -> OutcomeTrainer:  # fmt: skip
    """The trainer with its model, adapter and callbacks. The reference is the model at the start, as in DPO."""
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    model = trainable.load_model(model_config, chosen, hardware, arguments.seed)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path, arguments.max_length)
    loading.set_generation_end(model, tokenizer)
    peft_config = trainable.adapter_config(model_config, chosen)
    reference = None
    if peft_config is None and not arguments.precompute_ref_log_probs:
        reference = trainable.load_model(model_config, chosen, hardware, arguments.seed)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    trainer = OutcomeTrainer(
        model=model, ref_model=reference, args=arguments, train_dataset=rows.train, eval_dataset=rows.validation,
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    return trainer
