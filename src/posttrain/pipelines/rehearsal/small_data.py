"""A few rows of a recipe's dataset as a dataset of their own, or rows of the same columns made up."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.manifest import Source, split_path, write_dataset, write_manifest
from posttrain.data.rows import Row, by_content, read_parquet, row_id, text_row, write_table
from posttrain.data.sources import tiny_world
from posttrain.pipelines.preference_data import OUTCOME_SCHEMA, PAIR_SCHEMA

ROWS = {"train": 32, "validation": 8}
LOOKED_AT = 400  # rows of a split, of which the shorter ones are taken
MADE = Source(id="posttrain.tiny_world", licence="Apache-2.0")
QUESTIONS = 8  # that a rehearsal evaluates
BANK = "bank.pt"  # of the facts that are made up
BENCHMARK = "tiny_1step"  # whose questions anybody can make up


def write_some(dataset: Path, manifest: dict[str, Any], out: Path) -> str:
    """Copy a few of the shorter rows of each split to `out`; returns how many."""
    files, kept = [], {}
    out.mkdir(parents=True, exist_ok=True)
    for split, wanted in ROWS.items():
        if f"{split}.parquet" not in manifest["files"]:
            continue
        path = split_path(dataset, manifest, split)
        schema = pq.read_schema(path)
        rows = sorted(by_content(read_parquet(path), LOOKED_AT), key=lambda row: (len(str(row)), row["id"]))
        half = rows[: max(wanted, len(rows) // 2)]
        chosen = both_outcomes(by_content(half, None if "outcome" in schema.names else wanted), wanted)
        kept[split] = len(chosen)
        write_table(out / f"{split}.parquet", pa.Table.from_pylist(chosen, schema=schema))
        files.append(out / f"{split}.parquet")
    facts = {
        "columns": manifest["columns"], "seed": None, "tokens": {"tokenizer": None, "step": 64, "histogram": {}},
        "counts": {"read": sum(kept.values()), "dropped": {}, "kept": kept}, "decontamination": None,
    }  # fmt: skip
    write_manifest(out, files, Source(str(dataset), manifest["source"]["licence"]), facts)
    return " and ".join(f"{n} {split}" for split, n in kept.items())


def both_outcomes(rows: list[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """So many rows, of right and wrong answers half each where rows are answers with outcomes."""
    if not rows or "outcome" not in rows[0]:
        return rows[:wanted]
    right, wrong = ([row for row in rows if (row["outcome"] == 1.0) is side] for side in (True, False))
    return [*right[: wanted // 2], *wrong[: wanted // 2]]


def make_up(trainer: str, prompt: str, out: Path) -> None:
    """Write a dataset of the columns that a trainer reads, of word problems of the tiny world."""
    problems = tiny_world.problem_splits(0, 4 * ROWS["train"], 2 * ROWS["validation"])
    splits = {split: problems[split] for split in ROWS}
    if trainer in ("dpo", "reward_model"):
        _write_judged(out, {split: [_pair(row) for row in rows] for split, rows in splits.items()}, PAIR_SCHEMA)
    elif trainer in ("kto", "value"):
        judged = {split: [one for row in rows for one in _outcomes(row)] for split, rows in splits.items()}
        _write_judged(out, judged, OUTCOME_SCHEMA)
    elif prompt == "none":
        texts = {split: [text_row(_text(row), "tiny_world") for row in rows] for split, rows in splits.items()}
        write_dataset(out, texts, MADE, 0, {}, None)
    else:
        write_dataset(out, splits, MADE, 0, {}, None)


def make_up_facts(tokenizer: Any, length: int, out: Path) -> None:
    """Write questions about 256 facts for an explicit memory, and a bank of their sentences of `length` tokens each."""
    from posttrain.data.sources import tiny_facts
    from posttrain.data.sources.omcq import write_questions
    from posttrain.memory.bank.cache import BankShape, as_fact, build_bank, write_bank

    facts = tiny_facts.make_facts(8, 0)
    write_questions(out / "sentences.json", [fact.as_sentence() for fact in facts])
    for split in ROWS:
        write_questions(out / f"{split}.json", [fact.as_item(split) for fact in facts])
    shape = BankShape(len(facts), length, len(tokenizer), tokenizer.pad_token_id)
    encode = lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
    bank, mappings, _ = build_bank([as_fact(fact.as_sentence()) for fact in facts], encode, shape)
    write_bank(out / BANK, bank, mappings, {"source_file": str(out / "sentences.json")})


def make_up_questions(data_dir: Path) -> str:
    """Write eight questions where benchmark `tiny_1step` is looked for under `data_dir`; returns its name."""
    rows = tiny_world.problem_splits(1, 0, QUESTIONS)[f"test_{BENCHMARK.removeprefix('tiny_')}"]
    write_dataset(data_dir / "tiny_math", {f"test_{BENCHMARK.removeprefix('tiny_')}": rows}, MADE, 1, {}, None)
    return BENCHMARK


def _text(row: Row) -> str:
    return f"{row.prompt[0]['content']} {row.completion[0]['content']}"


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _wrong(row: Row) -> str:
    return f"The answer is \\boxed{{{int(row.answer) + 1}}}."


def _pair(row: Row) -> dict[str, Any]:
    return {
        "id": row.id, "question_id": row.id, "prompt": row.prompt, "chosen": row.completion,
        "rejected": _said(_wrong(row)), "answer": row.answer,
    }  # fmt: skip


def _outcomes(row: Row) -> list[dict[str, Any]]:
    common = {"question_id": row.id, "prompt": row.prompt, "answer": row.answer}
    wrong = {"id": row_id(row.id, "wrong"), "completion": _said(_wrong(row)), "outcome": 0.0}
    return [{**common, "id": row.id, "completion": row.completion, "outcome": 1.0}, {**common, **wrong}]


def _write_judged(out: Path, splits: dict[str, list[dict[str, Any]]], schema: pa.Schema) -> None:
    """Rows of data_prep/preference_pairs.py."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_table(out / f"{split}.parquet", pa.Table.from_pylist(rows, schema=schema))
    kept = {split: len(rows) for split, rows in splits.items()}
    facts = {
        "columns": schema.names, "seed": 0, "tokens": None, "decontamination": None,
        "counts": {"read": sum(kept.values()), "dropped": {}, "kept": kept},
    }  # fmt: skip
    write_manifest(out, [out / f"{split}.parquet" for split in splits], MADE, facts)
