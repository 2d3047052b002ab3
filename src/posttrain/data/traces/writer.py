"""Write the files of a selected dataset, ranges of rows at a time, by as many processes as asked."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import atomic
from posttrain.data.rows import ROW_SCHEMA
from posttrain.data.token_files import KEY, SUFFIX
from posttrain.data.token_files import SCHEMA as IDS_SCHEMA
from posttrain.data.traces.filters import REASONS
from posttrain.data.traces.parts import read_part
from posttrain.data.traces.selection import SPLITS, Table, _by_part
from posttrain.errors import PosttrainError

RANGE_BYTES = 32 * 2**20  # of input lines behind the rows in memory at once
PARTS_MAPPED = 128  # at once: of each, up to 700 KB around the wanted rows count as memory of the process
ROWS_PER_GROUP = 1024
DROPPED_SCHEMA = pa.schema([*ROW_SCHEMA, ("reason", pa.string()), ("detail", pa.string())])
WIDE = [*DROPPED_SCHEMA.names, "input_ids", "n_prompt"]


def write_files(
    directory: Path, parts: list[Path], read_bytes: int, table: Table, split: np.ndarray, ids_key: str, dropped: bool
) -> list[Path]:
    """Write the splits that have rows, their ids, and `dropped.parquet` if wanted; returns the files of the splits."""
    names = [name for number, name in enumerate(SPLITS) if (split == number).any()]
    ids_schema = IDS_SCHEMA.with_metadata({KEY: ids_key})
    files = {f"{name}.parquet": ROW_SCHEMA for name in names} | {f"{name}{SUFFIX}": ids_schema for name in names}
    if dropped:
        files["dropped.parquet"] = DROPPED_SCHEMA
    writers = {name: GroupWriter(directory / name, schema) for name, schema in files.items()}
    try:
        for rows, places in _ranges(parts, read_bytes, table, np.flatnonzero((split >= 0) | dropped)):
            for name in names:
                chosen = rows.take(np.flatnonzero(split[places] == SPLITS.index(name)))
                writers[f"{name}.parquet"].add(chosen.select(ROW_SCHEMA.names))
                writers[f"{name}{SUFFIX}"].add(chosen.select(IDS_SCHEMA.names))
            if dropped:
                out = np.flatnonzero(split[places] < 0)
                reasons = pa.array([list(REASONS)[code] for code in table.code[places[out]]], pa.string())
                chosen = rows.take(out)
                position = chosen.schema.get_field_index("reason")
                writers["dropped.parquet"].add(
                    chosen.set_column(position, "reason", reasons).select(DROPPED_SCHEMA.names)
                )
        for writer in writers.values():
            writer.close()
    except OSError as error:
        raise PosttrainError(
            f"{directory}: could not be written ({error}); free space and start the command again: it continues"
        ) from error
    finally:
        for writer in writers.values():
            writer.abandon()
    return [directory / name for name in files if name != "dropped.parquet"]


def _ranges(
    parts: list[Path], read_bytes: int, table: Table, wanted: np.ndarray
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The rows at these places of `table`, in order, a range at a time, with their places."""
    for places in np.array_split(wanted, min(len(wanted), 1 + read_bytes // RANGE_BYTES) or 1):
        grouped = list(_by_part(table.part[places]))
        pieces = [
            _copied(parts, table, places, grouped[first : first + PARTS_MAPPED])
            for first in range(0, len(grouped), PARTS_MAPPED)
        ]
        if pieces:
            order = np.argsort(np.concatenate([mine for _, mine in grouped]), kind="stable")
            yield pa.concat_tables(pieces).take(order), places


def _copied(parts: list[Path], table: Table, places: np.ndarray, grouped: list[tuple[int, np.ndarray]]) -> pa.Table:
    """Rows of some parts, one part's after the other's; the parts are mapped for no longer than this takes."""
    pieces, taken, before = [], [], 0
    for number, mine in grouped:
        # A part, too, is in order of id: its rows of a range lie side by side.
        rows = table.row[places[mine]]
        pieces.append(read_part(parts[number], WIDE).slice(rows.min(), rows.max() - rows.min() + 1))
        taken.append(before + rows - rows.min())
        before += len(pieces[-1])
    return pa.concat_tables(pieces).take(np.concatenate(taken))


class GroupWriter:
    """A parquet file of row groups of one size, whatever pieces it is given in; in place only once it is closed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.temporary = atomic.temporary_path(path)
        dictionaries = ["source"] if "source" in schema.names else False  # nothing else repeats
        self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd", use_dictionary=dictionaries)
        self.waiting = schema.empty_table()

    def add(self, rows: pa.Table) -> None:
        self.waiting = pa.concat_tables([self.waiting, rows.cast(self.schema)])
        while len(self.waiting) >= ROWS_PER_GROUP:
            self._write(ROWS_PER_GROUP)

    def _write(self, n: int) -> None:
        group = self.waiting.slice(0, n).combine_chunks()
        # A fresh copy: what lies behind a slice must not decide how pages are cut.
        self.writer.write_table(group.take(np.arange(len(group))))
        self.waiting = self.waiting.slice(n)

    def close(self) -> None:
        if len(self.waiting):
            self._write(ROWS_PER_GROUP)
        self.writer.close()
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)

    def abandon(self) -> None:
        self.temporary.unlink(missing_ok=True)
