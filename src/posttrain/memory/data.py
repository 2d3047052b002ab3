"""Questions about facts as training rows, each tied to the bank row that answers it, some of them counterfactual.

A counterfactual row is a question whose fact is another one for a moment: the bank's sentence and the answer name the
same wrong option. Whoever memorised the true answer is wrong then; whoever reads the bank is right.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import IGNORED, Encoding, RowError, encode_rows
from posttrain.data.rows import by_content
from posttrain.memory.bank.cache import check_mapping
from posttrain.memory.bank.questions import Fact, Question, facts_by_uuid, option_object, with_object

BATCH = 512
TEXT = pa.string()
QUESTION = pa.struct([("id", TEXT), ("content", TEXT), ("answer", TEXT), ("choices", pa.list_(TEXT)), ("uuid", TEXT)])
FACT = pa.struct([("row", pa.int64()), ("sentence", TEXT), ("subject", TEXT), ("object", TEXT)])
IDS = pa.list_(pa.int64())
SCHEMA = pa.schema([("input_ids", IDS), ("labels", IDS), ("question", QUESTION), ("fact", FACT)])


def build_rows(
    questions: Iterator[Question],
    cache: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    limit: int | None = None,
) -> tuple[Dataset, int]:
    """Token ids, labels and facts of questions, and how many were dropped as too long; raises RowError by the lint."""
    kept = [Question(**row) for row in by_content([asdict(question) for question in questions], limit)]
    facts = facts_by_uuid(check_mapping(cache), {question.uuid for question in kept})
    tables, dropped = [], 0
    for start in range(0, len(kept), BATCH):
        batch = kept[start : start + BATCH]
        rows = []
        encoded = encode_rows([question.as_row() for question in batch], tokenizer, encoding)
        for question, ids, labels in zip(batch, *encoded, strict=True):
            if len(ids) > encoding.max_length and encoding.too_long == "error":
                raise RowError(
                    f"row {question.id}: {len(ids)} tokens, but max_length is {encoding.max_length}: "
                    f"{question.content[:80]}…; raise max_length, or write too_long: drop"
                )
            if len(ids) > encoding.max_length:
                dropped += 1
                continue
            fact = asdict(facts.get(question.uuid, Fact()))
            rows.append({"input_ids": ids, "labels": labels, "question": asdict(question), "fact": fact})
        tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
    if not sum(map(len, tables)):
        raise RowError(f"no questions left to train on; {dropped} dropped as longer than max_length")
    return Dataset(pa.concat_tables(tables).combine_chunks()), dropped


class Collator:
    """Batches of rows, padded on the right, with the bank's rows that are other ones while the batch is trained on.

    Draws key on seed, epoch and bank row, so a run that was interrupted draws the same. `epoch` is set from outside.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoding: Encoding,
        knowledge_length: int,
        probability: float,
        seed: int,
    ) -> None:
        self.tokenizer, self.encoding, self.knowledge_length = tokenizer, encoding, knowledge_length
        self.probability, self.seed = probability, seed
        self.epoch = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels: (B, T)    database_index: (B,)    edited_rows: (E,), edited_sentences:
        (E, L) token ids
        """
        decided: dict[int, str | None] = {}  # the object that a bank row has in this batch, None for its own
        edits: dict[int, list[int]] = {}
        pairs = []
        for row in rows:
            pairs.append(self._trained_on(Question(**row["question"]), Fact(**row["fact"]), row, decided, edits))
        ids, labels = ([torch.tensor(values) for values in column] for column in zip(*pairs, strict=True))
        lengths = torch.tensor([len(one) for one in ids])
        sentences = torch.tensor(list(edits.values()), dtype=torch.int64).view(-1, self.knowledge_length)
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "database_index": torch.tensor([row["fact"]["row"] for row in rows]),
            "edited_rows": torch.tensor(list(edits), dtype=torch.int64),
            "edited_sentences": sentences,
        }

    def _trained_on(
        self,
        question: Question,
        fact: Fact,
        row: dict[str, Any],
        decided: dict[int, str | None],
        edits: dict[int, list[int]],
    ) -> tuple[list[int], list[int]]:
        """The row's ids and labels, its own or counterfactual; no labels where the batch has decided otherwise."""
        choice = self._draw(question, fact)
        if fact.row in decided and fact.row >= 0:
            object_ = decided[fact.row]
            same = [c for c in question.choices if option_object(c) == object_]
            if object_ is not None and not same:
                return row["input_ids"], [IGNORED] * len(row["input_ids"])
            choice = same[0] if same else None
        decided[fact.row] = option_object(choice) if choice else None
        if choice is None:
            return row["input_ids"], row["labels"]
        edits[fact.row] = edited_row(fact, option_object(choice), self.tokenizer, self.knowledge_length)
        ids, labels = encode_rows([question.as_row(choice)], self.tokenizer, self.encoding)
        return ids[0], labels[0]

    def _draw(self, question: Question, fact: Fact) -> str | None:
        """The wrong option that is true for now, or None for the truth."""
        draw = random.Random(json.dumps([self.seed, self.epoch, fact.row]))
        if fact.row < 0 or draw.random() >= self.probability:
            return None
        return counterfactual(question, fact, draw, self.tokenizer, self.knowledge_length)


def counterfactual(
    question: Question, fact: Fact, draw: random.Random, tokenizer: PreTrainedTokenizerBase, knowledge_length: int
) -> str | None:
    """A wrong choice whose sentence the bank's row can hold whole, or None where there is none."""
    wrong = sorted(choice for choice in question.choices if choice != question.answer)
    draw.shuffle(wrong)
    return next((c for c in wrong if edited_row(fact, option_object(c), tokenizer, knowledge_length)), None)


def edited_row(fact: Fact, object_: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int] | None:
    """Token ids of the fact's sentence about another object, padded; None where a row cannot say it whole."""
    sentence = with_object(fact, object_)
    if sentence is None:
        return None
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)) if len(ids) <= length else None
