"""The rows of a prepared dataset: conversational prompt and completion, or plain text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import atomic
from posttrain.errors import PosttrainError

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("answer", pa.string()),
        ("n_tokens", pa.int64()),
        ("source", pa.string()),
    ]
)
QUESTIONS = ("id", "prompt", "answer")  # the columns of which a question is asked and graded
COLUMN_KINDS = dict.fromkeys(("prompt", "completion", "chosen", "rejected"), MESSAGES)  # others hold text
TEXT_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("n_tokens", pa.int64()), ("source", pa.string())])


@dataclass(frozen=True)
class Row:
    """One question, its solution and its gold answer. `n_tokens` counts both, None where nobody counted."""

    id: str
    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    answer: str
    source: str
    n_tokens: int | None = None


@dataclass(frozen=True)
class TextRow:
    """One document of plain text, for language modelling."""

    id: str
    text: str
    source: str
    n_tokens: int | None = None


def row_id(*parts: str) -> str:
    """A content hash: equal content has equal ids, in every process and on every machine."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def chat_row(question: str, solution: str, answer: str, source: str) -> Row:
    """A row of one question and one solution."""
    return Row(
        id=row_id(question, solution),
        prompt=[{"role": "user", "content": question}],
        completion=[{"role": "assistant", "content": solution}],
        answer=answer,
        source=source,
    )


def text_row(text: str, source: str) -> TextRow:
    """A row of plain text."""
    return TextRow(id=row_id(text), text=text, source=source)


def write_parquet(path: Path, rows: list[Row] | list[TextRow]) -> None:
    """Write rows whole or not at all. Equal rows give equal bytes."""
    schema = TEXT_SCHEMA if isinstance(rows[0], TextRow) else ROW_SCHEMA
    write_table(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=schema))


def write_table(path: Path, table: pa.Table) -> None:
    """Replace `path` by the table as parquet, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    atomic.write_bytes(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows as dictionaries; raises PosttrainError where a needed column is missing, null, or of another kind."""
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise PosttrainError(f"{path}: not a parquet file ({reason}); run its data_prep/ script again") from error
    for name in needed:
        if name not in table.column_names:
            raise PosttrainError(
                f"{path}: has no column {name!r}, only {', '.join(table.column_names)}; prepare a dataset of the kind "
                f"that this command reads"
            )
        kind, column = COLUMN_KINDS.get(name, pa.string()), table[name]
        if not _alike(column.type, kind):
            raise PosttrainError(f"{path}: column {name!r}: expected {kind}, found {column.type}")
        if column.null_count:
            raise PosttrainError(f"{path}: column {name!r}: {column.null_count} of {len(column)} rows hold nothing")
    return table.to_pylist()


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether both are texts, or lists of messages, whatever offsets and further fields they have."""
    if pa.types.is_string(expected):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if not (pa.types.is_list(found) or pa.types.is_large_list(found)) or not pa.types.is_struct(found.value_type):
        return False
    return {"role", "content"} <= {field.name for field in found.value_type}


def by_content(rows: list[dict[str, Any]], n: int | None) -> list[dict[str, Any]]:
    """The first `n` rows in order of their content hash, so that a subset does not depend on the order of the file."""
    return rows if n is None else sorted(rows, key=lambda row: row["id"])[:n]
