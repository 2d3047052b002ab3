"""The knowledge bank: a fixed matrix of token ids, one sentence a row, which a model with a memory reads.

The cache file is `torch.save` of an int64 tensor (knowledge_num, knowledge_length); `<cache>_mapping.json` beside it
says which fact lies in which row. Row i holds sentence i of the source; rows without a sentence are all padding.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from posttrain import atomic, lineage
from posttrain.data.sources.omcq import stream_items
from posttrain.errors import PosttrainError
from posttrain.locks import locked_file

BATCH = 4096  # sentences tokenised at once
HEAD = {"knowledge_num": int, "knowledge_length": int, "digest": str, "mappings_digest": str, "updated_from": list}
HEAD_BYTES = 2**20  # of the mapping's first line
Encode = Callable[[list[str]], list[list[int]]]


class BankError(PosttrainError):
    """A knowledge bank that does not fit, or that is not there."""


@dataclass(frozen=True)
class BankShape:
    """What a bank must be: a square number of rows, tokens a row, and the token that fills what is empty."""

    knowledge_num: int
    knowledge_length: int
    vocab_size: int
    pad_id: int

    def __post_init__(self) -> None:
        if math.isqrt(self.knowledge_num) ** 2 != self.knowledge_num or self.knowledge_num < 1:
            raise BankError(f"knowledge_num {self.knowledge_num}: expected a perfect square, such as 1048576 = 1024²")
        if self.knowledge_length < 1 or not 0 <= self.pad_id < self.vocab_size:
            raise BankError(
                f"knowledge_length {self.knowledge_length}, pad id {self.pad_id}: expected 1 or more, and an id below "
                f"{self.vocab_size}"
            )


@dataclass(frozen=True)
class Fact:
    """One item of the source. `fault` says why its row stays empty, None where it has a sentence."""

    sentence: str
    uuid: str = ""
    subject: str = ""
    predicate: str = ""
    object: str = ""
    fault: str | None = None


def mapping_path(cache: Path) -> Path:
    return cache.with_name(f"{cache.stem}_mapping.json")


def as_fact(item: Any) -> Fact:
    """A fact of any form: a string, `{"sentence"}`, `{"text"}`, or any of these as the first of `{"target": [...]}`."""
    targets = item.get("target") if isinstance(item, dict) else None
    record = targets[0] if isinstance(targets, list) and targets else item
    if isinstance(record, str):
        record = {"sentence": record}
    sentence = (record.get("sentence") or record.get("text")) if isinstance(record, dict) else None
    if not isinstance(sentence, str) or not sentence.strip():
        return Fact("", fault="no sentence")
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return Fact("", fault="not valid text")
    return Fact(sentence, *(str(record.get(key) or "") for key in ("uuid", "subject", "predicate", "object")))


def facts_of_triples(triples: Iterable[dict[str, Any]], patterns: dict[str, str]) -> Iterator[Fact]:
    """Sentences made of triples by the pattern of their relation, such as `[X] was born in [Y].`; each needs one."""
    for triple in triples:
        relation, subject, object_ = (str(triple.get(key) or "") for key in ("relation", "subject", "object"))
        sentence = "".join({"[X]": subject, "[Y]": object_}.get(part, part) for part in _split(patterns[relation]))
        yield Fact(sentence, str(triple.get("uuid") or ""), subject, relation, object_)


def _split(pattern: str) -> list[str]:
    before, _, rest = pattern.replace("[Y]", "\0[Y]\0").replace("[X]", "\0[X]\0").partition("\0")
    return [before, *rest.split("\0")]


def read_facts(source: Path) -> Iterator[Fact]:
    """Facts of a JSON array, one at a time."""
    return map(as_fact, stream_items(source))


def build_bank(facts: Iterable[Fact], encode: Encode, shape: BankShape) -> tuple[Tensor, list[dict[str, Any]], int]:
    """The bank, what lies in its rows, and how many facts were left out because it is full.

    encode: sentences to token ids, without special tokens. A sentence longer than a row is cut; its mapping says so.
    """
    bank = torch.full((shape.knowledge_num, shape.knowledge_length), shape.pad_id, dtype=torch.int64)
    mappings: list[dict[str, Any]] = []
    facts = iter(facts)
    while batch := list(islice(facts, min(BATCH, shape.knowledge_num - len(mappings)))):
        for fact, ids in zip(batch, encode([fact.sentence for fact in batch]), strict=True):
            kept = ids[: shape.knowledge_length]
            bank[len(mappings), : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mappings.append(_mapping(len(mappings), fact, len(ids), len(ids) > len(kept)))
    return bank, mappings, sum(1 for _ in facts)


def _mapping(row: int, fact: Fact, tokens: int, truncated: bool) -> dict[str, Any]:
    entry = {"database_index": row, "uuid": fact.uuid, "sentence": fact.sentence, "subject": fact.subject}
    entry |= {"predicate": fact.predicate, "object": fact.object, "token_count": tokens, "is_truncated": truncated}
    return entry | ({"processing_error": fact.fault} if fact.fault else {})


def check_bank(bank: Any, shape: BankShape, where: str) -> Tensor:
    """`bank` if it is what `shape` says; raises BankError with the first thing that is not."""
    if not isinstance(bank, Tensor):
        raise BankError(f"{where}: holds a {type(bank).__name__}; expected one tensor of token ids")
    if bank.dtype != torch.int64:
        raise BankError(f"{where}: dtype is {bank.dtype}; token ids are torch.int64")
    if bank.dim() != 2:
        raise BankError(f"{where}: has shape {list(bank.shape)}; expected [knowledge_num, knowledge_length]")
    rows, length = bank.shape
    if math.isqrt(rows) ** 2 != rows or rows == 0:
        raise BankError(f"{where}: has {rows} rows, which is no perfect square; build it with another knowledge_num")
    if (rows, length) != (shape.knowledge_num, shape.knowledge_length):
        raise BankError(
            f"{where}: has shape [{rows}, {length}], expected [{shape.knowledge_num}, {shape.knowledge_length}]; "
            f"build it again or change knowledge_num and knowledge_length"
        )
    lowest, highest = int(bank.min()), int(bank.max())
    if lowest < 0 or highest >= shape.vocab_size:
        raise BankError(
            f"{where}: holds ids from {lowest} to {highest}, but the tokenizer has 0 to {shape.vocab_size - 1}; it was "
            f"made with another tokenizer"
        )
    return bank


def bank_digest(bank: Tensor) -> str:
    """SHA-256 of a bank's shape and token ids, whatever file it came from."""
    digest = hashlib.sha256(str(list(bank.shape)).encode())
    digest.update(memoryview(bank.cpu().contiguous().numpy()))
    return digest.hexdigest()


def read_metadata(cache: Path) -> dict[str, Any]:
    """The head of the mapping beside a cache; empty where there is none. Its first line alone is read."""
    path = mapping_path(cache)
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            metadata = json.loads(file.readline(HEAD_BYTES).rstrip().removesuffix(",") + "}")["metadata"]
        wrong = [name for name, kind in HEAD.items() if name in metadata and not isinstance(metadata[name], kind)]
        if wrong:
            raise ValueError(f"{wrong[0]}: {metadata[wrong[0]]!r}: expected {HEAD[wrong[0]].__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BankError(f"{path}: not the mapping of a bank ({error}); build it again") from error
    return metadata


def load_bank(cache: Path, shape: BankShape) -> Tensor:
    """The bank of a cache file, checked against `shape` and its mapping's digest; raises BankError otherwise."""
    if not cache.is_file():
        raise BankError(f"{cache}: missing; build it with data_prep/knowledge_cache.py")
    try:
        bank = torch.load(cache, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads torch to
        reason = str(error).split("\n")[0][:200]
        raise BankError(f"{cache}: not a tensor that torch.save wrote ({reason}); build it again") from error
    check_bank(bank, shape, str(cache))
    digest, expected = bank_digest(bank), read_metadata(cache).get("digest")
    if expected not in (None, digest):
        raise BankError(
            f"{cache}: digest {digest[:12]}…, but its mapping says {expected[:12]}…; one of the two was changed alone, "
            f"build it again"
        )
    return bank


def write_bank(cache: Path, bank: Tensor, mappings: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Write the mapping and last the bank, so that a bank on disk always has its mapping."""
    head = {
        "total_entries": len(mappings),
        "knowledge_num": bank.shape[0],
        "knowledge_length": bank.shape[1],
        "digest": bank_digest(bank),
        "mappings_digest": _lines_digest(_mapping_lines(mappings)),
        **metadata,
        "generation_time": lineage.now(),
    }
    with locked_file(cache):
        cache.unlink(missing_ok=True)
        with atomic.writing(mapping_path(cache)) as file:
            file.write(f'{{"metadata": {json.dumps(head, ensure_ascii=False)},\n'.encode())
            file.writelines(_mapping_lines(mappings))
        with atomic.writing(cache) as file:
            torch.save(bank, file)


def check_mapping(cache: Path) -> Path:
    """The mapping beside a cache; raises BankError where it was changed since it was written. Old ones cannot tell."""
    path, expected = mapping_path(cache), read_metadata(cache).get("mappings_digest")
    if expected is not None:
        with path.open("rb") as file:
            file.readline()
            digest = _lines_digest(file)
        if digest != expected:
            raise BankError(f"{path}: changed after it was written; build it again")
    return path


def _mapping_lines(mappings: list[dict[str, Any]]) -> Iterator[bytes]:
    yield b'"mappings": [\n'
    for number, entry in enumerate(mappings, start=1):
        yield json.dumps(entry, ensure_ascii=False).encode() + (b",\n" if number < len(mappings) else b"\n")
    yield b"]}\n"


def _lines_digest(lines: Iterable[bytes]) -> str:
    digest = xxhash.xxh3_128()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
