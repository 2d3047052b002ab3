"""Rows of a parquet file in bounded memory: what is packed is looked at before it is unpacked.

A dictionary holds a text once and names it a million times, and a page of zeros packs a thousandfold. So a column whose
dictionary could grow beyond the bound is read as it is packed, and its rows are measured before they become text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from posttrain.data.json_text import TooLongError

BATCH = 64  # rows unpacked at once
COLUMN_ROWS = 16  # of the largest size, up to which the column of a row group may be whatever it packs to
LIKELY = 100  # times that a larger one may pack
DICTIONARY_PAGE, COMPACT_INT = 2, 0x15


def parquet_rows(path: Path, row_bytes: int) -> Iterator[dict[str, Any] | str]:
    """Every row of the file, or the fault of one that is longer than the bound."""
    with path.open("rb") as file:
        _check_pages(file, row_bytes, path.stat().st_size)
        packed = _large_dictionaries(file, row_bytes)
    with pq.ParquetFile(path, read_dictionary=packed) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            if _unpacked_bytes(batch) <= row_bytes:
                yield from batch.to_pylist()
                continue
            for place in range(len(batch)):
                row = batch.slice(place, 1)
                size = _unpacked_bytes(row)
                yield row.to_pylist()[0] if size <= row_bytes else f"a row of {size} bytes, more than {row_bytes}"


def _check_pages(file: IO[bytes], row_bytes: int, size: int) -> None:
    """Unpack every page once and keep none of them: a damaged file raises here what ends a process elsewhere.

    Arrow looks at the metadata of a column without a net, so no column is asked for its metadata before this.
    """
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > max(COLUMN_ROWS * row_bytes, LIKELY * size):
            raise TooLongError(f"a group of rows unpacks to {largest} bytes from {size}")
        parquet.scan_contents()
    file.seek(0)


def _large_dictionaries(file: IO[bytes], row_bytes: int) -> list[str]:
    """Columns whose dictionaries could make a batch longer than the bound; raises TooLongError for what is unlikely."""
    metadata = pq.read_metadata(file)
    levels = [metadata.schema.column(number).max_repetition_level for number in range(metadata.num_columns)]
    packed = set()
    for group in range(metadata.num_row_groups):
        for number, repeated in enumerate(levels):
            chunk = metadata.row_group(group).column(number)
            size = max(chunk.total_uncompressed_size, 8 * chunk.num_values if repeated else 0)
            if size > max(COLUMN_ROWS * row_bytes, LIKELY * chunk.total_compressed_size):
                raise TooLongError(
                    f"column {chunk.path_in_schema} unpacks to {size} bytes from {chunk.total_compressed_size}"
                )
            times = chunk.num_values if repeated else BATCH
            if chunk.physical_type == "BYTE_ARRAY" and times * _dictionary_bytes(file, chunk) > row_bytes:
                packed.add(chunk.path_in_schema)
    return sorted(packed)


def _dictionary_bytes(file: IO[bytes], chunk: pq.ColumnChunkMetaData) -> int:
    """The unpacked size of a column's dictionary, from the head of its page: type and size as Thrift writes them."""
    starts = [start for start in (chunk.dictionary_page_offset, chunk.data_page_offset) if start is not None]
    file.seek(min(starts))
    values, head = [], iter(file.read(16))
    for byte in head:
        if byte != COMPACT_INT or len(values) == 2:
            break
        values.append(_zigzag(head))
    if len(values) < 2:
        return chunk.total_uncompressed_size
    return values[1] if values[0] == DICTIONARY_PAGE else 0


def _zigzag(data: Iterator[int]) -> int:
    number = 0
    for shift, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * shift
        if not byte & 0x80:
            break
    return number >> 1 ^ -(number & 1)


def _unpacked_bytes(data: pa.RecordBatch | pa.Array) -> int:
    """What the values take as text and numbers."""
    if isinstance(data, pa.RecordBatch):
        return sum(map(_unpacked_bytes, data.columns))
    if pa.types.is_dictionary(data.type):
        return pc.sum(pc.take(pc.binary_length(data.dictionary), data.indices)).as_py() or 0
    if pa.types.is_struct(data.type):
        return sum(map(_unpacked_bytes, data.flatten()))
    if pa.types.is_nested(data.type):
        return _unpacked_bytes(data.flatten())
    return data.nbytes
