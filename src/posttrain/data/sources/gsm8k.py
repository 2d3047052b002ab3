"""GSM8K's records as rows: gold after `####`, calculator marks dropped, the solution's end in the wanted style."""

import re
from collections import Counter
from dataclasses import replace

from posttrain.data.records import Record
from posttrain.data.rows import Row, chat_row
from posttrain.errors import PosttrainError

HUB_NAME = "openai/gsm8k"
LICENCE = "MIT"
MARK = re.compile(r"<<[^<>]*>>")
STYLES = ("boxed", "hashes", "r1_zero")


def to_rows(records: list[Record], split: str, style: str, keep_marks: bool) -> tuple[list[Row], Counter[str]]:
    """Rows of the records, and how many were dropped for which reason."""
    rows: dict[str, Row] = {}
    dropped: Counter[str] = Counter()
    for number, record in enumerate(records, start=1):
        if not all(isinstance(record.get(key), str) for key in ("question", "answer")):
            raise PosttrainError(f"{HUB_NAME}/{split}: record {number}: expected question and answer as text: {record}")
        reasoning, separator, gold = record["answer"].rpartition("####")
        gold = gold.strip().replace(",", "")
        if not separator or not gold:
            dropped["no_gold"] += 1
            continue
        reasoning = reasoning.strip() if keep_marks else MARK.sub("", reasoning).strip()
        row = chat_row(record["question"].strip(), solution(reasoning, gold, style), gold, f"{HUB_NAME}/{split}")
        if row.id in rows:
            dropped["duplicate"] += 1
        rows.setdefault(row.id, row)
    return list(rows.values()), dropped


def solution(reasoning: str, gold: str, style: str) -> str:
    """The completion text: reasoning, then the answer in the style's form."""
    if style == "r1_zero":  # the prompt ends inside <think>; exactly one space, as the strict format wants it
        return f" {reasoning} </think> <answer> \\boxed{{{gold}}} </answer>"
    if style == "hashes":
        return f"{reasoning}\n#### {gold}"
    return f"{reasoning}\nThe answer is \\boxed{{{gold}}}."


def split_validation(splits: dict[str, list[Row]], n: int) -> dict[str, list[Row]]:
    """Move `n` training rows to validation, by content hash, so that it does not depend on the order of the file."""
    chosen = {row.id for row in sorted(splits["train"], key=lambda row: row.id)[:n]}
    return {
        "train": [row for row in splits["train"] if row.id not in chosen],
        "validation": [row for row in splits["train"] if row.id in chosen],
        "test": splits["test"],
    }


def count_tokens(splits: dict[str, list[Row]], tokenizer: str) -> dict[str, list[Row]]:
    """Rows with the tokens of question and solution, without any template."""
    from posttrain.data.tokenise import open_tokenizer

    encode = open_tokenizer(tokenizer)
    counted = {}
    for split, rows in splits.items():
        texts = [row.prompt[0]["content"] + row.completion[0]["content"] for row in rows]
        ids = encode(texts, add_special_tokens=False)["input_ids"]
        counted[split] = [replace(row, n_tokens=len(i)) for row, i in zip(rows, ids, strict=True)]
    return counted
