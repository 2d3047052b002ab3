"""Preference pairs as token ids: the prompt as evaluation will tokenise it, and both completions after it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import BATCH, Encoding, RowError, encode_each
from posttrain.data.manifest import split_path
from posttrain.data.rows import by_content, read_parquet
from posttrain.recipe.options import PairOptions

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pairs:
    """Tokenised splits with the columns prompt_ids, chosen_ids and rejected_ids, and what became of the rows."""

    train: Dataset
    validation: Dataset | None
    used: dict[str, int]
    dropped_too_long: dict[str, int]

    def whole(self) -> "Pairs":
        """Each side as prompt and completion in one, as a reward model reads it."""
        splits = [split and split.map(_join, remove_columns="prompt_ids") for split in (self.train, self.validation)]
        return Pairs(*splits, self.used, self.dropped_too_long)


def _join(row: dict[str, list[int]]) -> dict[str, list[int]]:
    return {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES}


def load_pairs(
    options: PairOptions, manifest: dict[str, Any], arguments: Any, tokenizer: PreTrainedTokenizerBase
) -> Pairs:
    """Tokenise and lint the train pairs, and the validation pairs where the recipe evaluates."""
    encoding = Encoding(options.prompt, tokenizer.eos_token, arguments.max_length, options.too_long)
    names = ("train", "validation") if arguments.eval_strategy != "no" else ("train",)
    splits, used, dropped = {}, {}, {}
    for name in names:
        limit = options.num_train_examples if name == "train" else None
        path = split_path(Path(options.dataset_name), manifest, name)
        encoded, dropped[name] = _encode_split(path, tokenizer, encoding, limit)
        splits[name], used[name] = Dataset.from_list(encoded), len(encoded)
    return Pairs(splits["train"], splits.get("validation"), used, dropped)


def _encode_split(
    path: Path, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, limit: int | None
) -> tuple[list[dict[str, list[int]]], int]:
    """Pairs that fit `max_length`, and how many did not; raises RowError for the first that the lint refuses."""
    rows = by_content(read_parquet(path), limit)
    if rows and "chosen" not in rows[0]:
        raise RowError(f"{path}: has no column 'chosen', only {', '.join(rows[0])}; data_prep/preference_pairs.py")
    kept, dropped = [], 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        sides = [
            encode_each([{**row, "completion": row[side]} for row in batch], tokenizer, encoding) for side in SIDES
        ]
        for row, chosen, rejected in zip(batch, *sides, strict=True):
            if fault := chosen.fault or rejected.fault:
                raise RowError(fault)
            longest = max(len(chosen.ids), len(rejected.ids))
            if longest > encoding.max_length and encoding.too_long == "error":
                raise RowError(
                    f"{path}: pair {row['id']}: {longest} tokens, but max_length is {encoding.max_length}; raise it, "
                    f"or write too_long: drop"
                )
            dropped += longest > encoding.max_length
            if longest <= encoding.max_length:
                ids = {
                    f"{side}_ids": e.ids[e.n_prompt :].tolist()
                    for side, e in zip(SIDES, (chosen, rejected), strict=True)
                }
                kept.append({"prompt_ids": chosen.ids[: chosen.n_prompt].tolist(), **ids})
    if not kept:
        raise RowError(f"{path}: no pairs left to train on: {dropped} of {len(rows)} dropped as longer than max_length")
    return kept, dropped
