"""What is true of each row whatever else is read: parsed, rendered, tokenised, checked. One batch of lines is one part.

A part is an Arrow file below the work directory, named by the digest of its input and its number, in a directory named
by the settings that decide its content. It is written whole or not at all, so that an interrupted run continues, and
another budget, cap or number of rows needs no row to be tokenised again. The digest of its bytes is the end of its name
and is checked before it is used again: a part that a disk has changed is made anew. It is not compressed, 2.2 times the
size of the lines, so that of a part that is mapped only what is looked at is read.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain import atomic
from posttrain.data.prompts import render_prompt
from posttrain.data.prompts.control_tokens import control_tokens
from posttrain.data.rows import MESSAGES, row_id
from posttrain.data.traces import filters
from posttrain.data.traces.contamination import Index
from posttrain.data.traces.duplicates import ENTRIES, signatures
from posttrain.data.traces.inputs import Item
from posttrain.data.traces.messages import ShapeError
from posttrain.data.traces.shapes import Shape, Trace, read_trace
from posttrain.digests import file_digest
from posttrain.errors import PosttrainError, printable
from posttrain.grading.grader import VERSION as GRADER_VERSION
from posttrain.grading.grader import Grader

VERSION = "4"  # of what a part holds
UNREAD = b"posttrain.unread"  # in a part's metadata: columns that may matter and were not read, with their rows
DETAIL = 300  # characters
KNOWN_PAIRS = 50_000  # that a grader remembers
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("answer", pa.string()),
        ("n_tokens", pa.int64()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("number", pa.int64()),  # line or row of the input
        ("n_prompt", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("question", pa.uint64()),
        ("tie", pa.uint64()),  # orders rows of one id that differ in gold answer, source or rate
        ("rate", pa.float64()),
        ("touches", pa.int64()),
        ("signature", pa.binary(ENTRIES * 4)),
    ]
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a part holds, beside the lines."""

    tokenizer: str
    revision: str | None
    prompt: str
    eos_token: str | None
    require_think: bool
    check_answer: bool
    max_repeats: int
    source: str
    shape: Shape
    control_tokens: str = "drop"  # or text

    def directory(self, work: Path, ids_key: str, index: Index) -> Path:
        """Where parts under these settings lie."""
        values = {
            **dataclasses.asdict(self),
            "tokenizer": ids_key,
            "index": index.against,
            "versions": [VERSION, GRADER_VERSION],
        }
        return work / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class PartMaker:
    """Turns batches of lines into tables; holds the tokenizer, the grader and the index of its process."""

    def __init__(self, settings: Settings, index: Index) -> None:
        from posttrain.data.encode import Encoding, load_tokenizer
        from posttrain.data.tokenise import fastest

        self.settings, self.index = settings, index
        self.tokenizer = load_tokenizer(settings.tokenizer, settings.revision, settings.eos_token)
        self.tokenise = fastest(self.tokenizer)
        self.encoding = Encoding(settings.prompt, settings.eos_token, max_length=0, too_long="drop")
        self.controls = control_tokens(self.tokenizer)
        self.template = self._shared_ids()
        self.unread: Counter[str] = Counter()  # of the batch under way
        self.grader = Grader(workers=1)
        Finalize(None, self.grader.pool.close, exitpriority=10)  # its processes end with this one

    def _shared_ids(self) -> int:
        """How many ids every prompt starts with; worked examples would make all questions near-duplicates."""
        from posttrain.data.tokenise import token_ids

        asked = [[{"role": "user", "content": question}] for question in ("1", "x")]
        texts = [render_prompt(self.settings.prompt, messages, self.tokenizer) for messages in asked]
        one, other = token_ids(self.tokenizer, texts)
        return int(np.argmin(np.append(one[: len(other)] == other[: len(one)], False)))

    def table(self, batch: list[Item]) -> pa.Table:
        """Rows of `SCHEMA` in order of their id."""
        self.unread.clear()
        rows = [self._row(number, line) for number, line in batch]
        readable = [row for row in rows if row["reason"] is None]
        self._encode(readable)
        if self.settings.check_answer:
            self._check_answers(readable)
        rows.sort(key=lambda row: row["id"])
        return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({UNREAD: json.dumps(self.unread)}))

    def _row(self, number: int, line: bytes | str) -> dict[str, Any]:
        empty = dict.fromkeys(SCHEMA.names) | {"number": number, "question": 0, "tie": 0, "touches": 0}
        try:
            if isinstance(line, str):
                raise ShapeError(line)
            trace = read_trace(line, self.settings.shape)
        except ShapeError as error:
            content = hashlib.sha256(line.strip() if isinstance(line, bytes) else line.encode()).hexdigest()[:16]
            fault = {"reason": "unreadable", "detail": printable(str(error))[:DETAIL]}
            return empty | {"id": content, "answer": None, "source": self.settings.source} | fault
        self.unread.update(map(printable, trace.unread))
        return empty | self._facts(trace)

    def _facts(self, trace: Trace) -> dict[str, Any]:
        """The columns of a readable row, its reason among them."""
        texts = [message["content"] for message in trace.prompt]
        response, gold, source = trace.response.strip(), _encodable(trace.gold or ""), _encodable(trace.source or "")
        if self.settings.control_tokens == "text":
            texts, response = [self.controls.as_text(text) for text in texts], self.controls.as_text(response)
        reason, detail = None, filters.text_fault(*texts, response, trace.gold or "")
        if detail:
            reason = "invalid_text"
            texts, response = [_encodable(text) for text in texts], _encodable(response)
        elif token := self.controls.written([*texts, response]):
            reason, detail = "control_tokens", f"{token} is written in the text"
        elif len(response) + sum(map(len, texts)) > filters.LONGEST:
            reason, detail = "too_long", f"more than {filters.LONGEST} characters"
        elif filters.unfinished(response, self.settings.require_think):
            reason = "unfinished"
        completion = lay_out(response, self.settings.prompt) if reason is None else response
        prompt = [{**message, "content": text} for message, text in zip(trace.prompt, texts, strict=True)]
        return {
            "id": row_id(*texts, completion),
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": completion}],
            "answer": gold,
            "source": source or self.settings.source,
            "reason": reason if reason in ("invalid_text", "control_tokens", "too_long") else None,
            "detail": detail,
            "question": int(row_id(*texts), 16),
            "tie": int(row_id(gold, source, str(trace.rate)), 16),
            "rate": trace.rate,
            "touches": self.index.touched(texts),
            "later_reason": reason,
            "gold_fault": trace.gold_fault,
        }

    def _encode(self, rows: list[dict[str, Any]]) -> None:
        """Token ids, and what follows from them; the length is known of every row, whatever else is wrong with it."""
        from posttrain.data.encode import encode_each

        encoded = encode_each(rows, self.tokenizer, self.encoding, self.tokenise) if rows else []
        signed = signatures([one.ids[self.template :] for one in encoded])
        for row, one, signature in zip(rows, encoded, signed, strict=True):
            response = one.ids[one.n_prompt :]
            row |= {"input_ids": one.ids, "n_tokens": len(one.ids), "n_prompt": one.n_prompt}
            row["signature"] = signature.tobytes()
            row["reason"] = row.pop("later_reason")
            if row["reason"] is None and one.fault:
                row |= {"reason": "untrainable", "detail": one.fault}
            repeats = filters.most_repeated(response)
            if row["reason"] in (None, "untrainable") and repeats > self.settings.max_repeats:
                row |= {"reason": "loop", "detail": f"{filters.LOOP_NGRAM} tokens {repeats} times"}

    def _check_answers(self, rows: list[dict[str, Any]]) -> None:
        rows = [row for row in rows if row["reason"] in (None, "loop", "untrainable")]
        texts = [row["completion"][0]["content"] for row in rows]
        if len(self.grader.known) > KNOWN_PAIRS:
            self.grader.known.clear()
        reasons = filters.answer_reasons([row["answer"] or None for row in rows], texts, self.grader)
        for row, reason in zip(rows, reasons, strict=True):
            row["reason"] = reason or row["reason"]
            if reason == "bad_gold" and row["gold_fault"]:
                row["detail"] = printable(row["gold_fault"])[:DETAIL]


def lay_out(response: str, prompt: str) -> str:
    """The response as the prompt's form wants it.

    r1_zero's prompt ends inside <think>, so there it is the thought, its end, and the answer inside its own tags.
    """
    if prompt != "r1_zero":
        return response
    thought, _, final = response.removeprefix("<think>").rpartition("</think>")
    final = final.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
    return f" {thought.strip()} </think> <answer> {final} </answer>"


def write_part(table: pa.Table, path: Path) -> Path:
    """Write a part, whole or not at all; returns its path."""
    try:
        with atomic.writing(path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    except OSError as error:
        raise PosttrainError(
            f"{path}: could not be written ({error}); free space, or name another --work-dir, and start the command "
            f"again: it continues"
        ) from error
    return path


def mark_part(path: Path) -> Path:
    """Give a part the name that says it is whole: the digest of its bytes is in it."""
    return path.rename(path.with_suffix(f".{file_digest(path)}.arrow"))


def read_part(path: Path, columns: list[str]) -> pa.Table:
    """These columns of a part, mapped: memory is taken by what is looked at, for as long as the table lives."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all().select(columns)  # included_fields would copy them


def unread_columns(path: Path) -> Counter[str]:
    """Columns that may matter and were not read, with the number of a part's rows that hold something there."""
    with pa.memory_map(str(path)) as file:
        return Counter(json.loads(pa.ipc.open_file(file).schema.metadata[UNREAD]))


def _encodable(text: str) -> str:
    """Text that a file can hold: lone surrogates shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
