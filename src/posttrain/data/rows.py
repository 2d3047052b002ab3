"""The rows of a prepared dataset: conversational prompt and completion, or plain text."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import atomic

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
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


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
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink, compression="zstd")
    atomic.write_bytes(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Rows as dictionaries with the columns of `ROW_SCHEMA` or `TEXT_SCHEMA`."""
    return pq.read_table(path).to_pylist()


def by_content(rows: list[dict[str, Any]], n: int | None) -> list[dict[str, Any]]:
    """The first `n` rows in order of their content hash, so that a subset does not depend on the order of the file."""
    return rows if n is None else sorted(rows, key=lambda row: row["id"])[:n]
