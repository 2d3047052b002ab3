"""Changing rows of a knowledge bank without training: replace, add, remove.

A change is `{"op": "replace", "uuid": …, "sentence": …}`; the row is named by `uuid` or `database_index`, the other
fields are those of a fact. What a changed bank was made from stands in its mapping, so a memory trained with that
accepts it.
"""

import heapq
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.memory.bank.cache import (
    BankError,
    BankShape,
    Encode,
    Fact,
    as_fact,
    bank_digest,
    check_mapping,
    mapping_path,
    write_bank,
)

OPERATIONS = ("replace", "add", "remove")
Mapping = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One change; `where` names it in errors. row and uuid say which row, as far as given."""

    op: str
    row: int | None
    uuid: str
    fact: Fact
    where: str


def as_change(record: Any, where: str) -> Change:
    """The change that a JSON object describes; raises BankError."""
    op = record.get("op") if isinstance(record, dict) else None
    if op not in OPERATIONS:
        raise BankError(f'{where}: op: {op!r}: expected one of {", ".join(OPERATIONS)}, as in {{"op": "replace", …}}')
    row, uuid, fact = record.get("database_index"), str(record.get("uuid") or ""), as_fact(record)
    if row is not None and (isinstance(row, bool) or not isinstance(row, int)):
        raise BankError(f"{where}: database_index: {row!r}: expected a row's number")
    if op != "remove" and fact.fault:
        raise BankError(f"{where}: {fact.fault}; expected the sentence the row shall hold")
    if op != "add" and row is None and not uuid:
        raise BankError(f"{where}: expected uuid or database_index of the row to {op}")
    return Change(op, row, uuid, fact, where)


def read_mappings(cache: Path) -> list[Mapping]:
    """What lies in each filled row of a bank."""
    try:
        mappings = json.loads(check_mapping(cache).read_text(encoding="utf-8"))["mappings"]
        if not all(isinstance(entry["database_index"], int) and isinstance(entry["uuid"], str) for entry in mappings):
            raise ValueError("expected entries with a database_index and a uuid")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BankError(f"{mapping_path(cache)}: not the mapping of a bank ({error}); build it again") from error
    return mappings


def apply_changes(
    bank: Tensor, mappings: list[Mapping], changes: list[Change], encode: Encode, shape: BankShape
) -> tuple[Tensor, list[Mapping]]:
    """A bank and mappings with the changes made one after another; the arguments stay as they are. Raises BankError."""
    bank, entries = bank.clone(), {entry["database_index"]: entry for entry in mappings}
    free = sorted(set(range(shape.knowledge_num)) - set(entries))  # sorted, so it is a heap
    by_uuid = {entry["uuid"]: entry["database_index"] for entry in mappings if entry["uuid"]}
    for change in changes:
        while free and free[0] in entries:
            heapq.heappop(free)
        row = _row_of(change, entries, by_uuid, free)
        if not 0 <= row < shape.knowledge_num:
            raise BankError(f"{change.where}: row {row}: expected 0 to {shape.knowledge_num - 1}")
        before = entries.pop(row, {})
        by_uuid.pop(before.get("uuid"), None)
        bank[row] = shape.pad_id
        if change.op == "remove":
            heapq.heappush(free, row)
            continue
        entries[row] = _write_row(bank, row, change, before, encode)
        if uuid := entries[row]["uuid"]:
            by_uuid[uuid] = row
    return bank, [entries[row] for row in sorted(entries)]


def _row_of(change: Change, entries: dict[int, Mapping], by_uuid: dict[str, int], free: list[int]) -> int:
    """The row that a change is about; for an addition without a number the first free one."""
    named = by_uuid.get(change.uuid) if change.row is None else change.row
    if change.op != "add":
        if named not in entries or by_uuid.get(change.uuid, named) != named:
            raise BankError(f"{change.where}: no row of number {change.row} and uuid {change.uuid!r}; use op: add")
        return named
    if named in entries or change.uuid in by_uuid:
        raise BankError(f"{change.where}: row {named} with uuid {change.uuid!r} is taken; use op: replace")
    if named is None and not free:
        raise BankError(f"{change.where}: all rows are taken; remove one first")
    return free[0] if named is None else named


def _write_row(bank: Tensor, row: int, change: Change, before: Mapping, encode: Encode) -> Mapping:
    (ids,) = encode([change.fact.sentence])
    if not 0 < len(ids) <= bank.shape[1]:
        raise BankError(
            f"{change.where}: {len(ids)} tokens, but a row holds {bank.shape[1]}; shorten {change.fact.sentence[:80]!r}"
        )
    bank[row, : len(ids)] = torch.tensor(ids)
    fields = {key: value or before.get(key, "") for key, value in asdict(change.fact).items() if key != "fault"}
    return {"database_index": row, **fields, "token_count": len(ids), "is_truncated": False}


def write_changed(
    out: Path, bank: Tensor, mappings: list[Mapping], made_from: Tensor, metadata: dict[str, Any]
) -> None:
    """Write a changed bank whose mapping names every bank it was made from. metadata: that of `made_from`."""
    known = {key: metadata[key] for key in ("source_file", "left_out") if key in metadata}
    history = [*metadata.get("updated_from", []), bank_digest(made_from)]
    write_bank(out, bank, mappings, {**known, "updated_from": list(dict.fromkeys(history))})
