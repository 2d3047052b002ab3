"""`manifest.json`: what a prepared dataset is, where it came from, and proof that its files are whole."""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import atomic
from posttrain.data.rows import ROW_SCHEMA, TEXT_SCHEMA, Row, TextRow, write_parquet
from posttrain.digests import bytes_digest
from posttrain.errors import PosttrainError, check_writable
from posttrain.lineage import code_state
from posttrain.locks import locked
from posttrain.secrets import masked_arguments

SCHEMA_VERSION = 2  # 1 had no digest of its own
NAME = "manifest.json"
HISTOGRAM_STEP = 64  # tokens per bar


class ManifestError(PosttrainError):
    """A dataset directory that is not what its manifest says."""


@dataclass(frozen=True)
class Source:
    """Where rows were read from. `revision` and `sha256` are None where the source has none, e.g. generated rows."""

    id: str
    licence: str
    revision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


def write_dataset(
    directory: Path,
    splits: dict[str, list[Row]] | dict[str, list[TextRow]],
    source: Source,
    seed: int | None,
    dropped: dict[str, int],
    tokenizer: str | None,
) -> dict[str, Any]:
    """Write `<split>.parquet` for each split and the manifest last; returns the manifest.

    `dropped` counts rows left out by reason; `tokenizer` names what `n_tokens` was counted with.
    """
    for split, rows in splits.items():
        if not rows:
            raise ManifestError(f"{directory}: split {split} would have no rows; dropped: {dropped or 'none'}")
    check_writable(directory)
    kept = {split: len(rows) for split, rows in splits.items()}
    facts = {
        "columns": (TEXT_SCHEMA if "text" in _columns(splits) else ROW_SCHEMA).names,
        "seed": seed,
        "counts": {"read": sum(kept.values()) + sum(dropped.values()), "dropped": dropped, "kept": kept},
        "tokens": {"tokenizer": tokenizer, "step": HISTOGRAM_STEP, "histogram": _histogram(splits)},
        "decontamination": None,
    }
    with locked(directory):
        clear(directory)
        for split, rows in splits.items():
            write_parquet(directory / f"{split}.parquet", rows)
        return write_manifest(directory, [directory / f"{split}.parquet" for split in splits], source, facts)


def clear(directory: Path) -> None:
    """Remove the dataset in a directory that is held, and what a killed command left; from here on it is unfinished."""
    (directory / NAME).unlink(missing_ok=True)
    for path in (*directory.glob("*.parquet"), *directory.glob(".*.tmp")):
        path.unlink()


def write_manifest(directory: Path, files: list[Path], source: Source, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of parquet files that are in place; the last thing that happens to a dataset. Returns it.

    `facts` are `columns`, `seed`, `counts`, `tokens`, `decontamination`, and what else the script has to say.
    """
    manifest = {
        "schema": SCHEMA_VERSION,
        "columns": facts["columns"],
        "source": {"id": source.id, "revision": source.revision, "sha256": source.sha256, "licence": source.licence},
        "command": [Path(sys.argv[0]).name, *masked_arguments(sys.argv[1:])],
        "code": code_state(),
        **{name: value for name, value in facts.items() if name != "columns"},
        "files": {f.name: {"rows": pq.read_metadata(f).num_rows, "sha256": atomic.sha256_file(f)} for f in files},
    }
    manifest["digest"] = _digest(manifest)
    atomic.write_json(directory / NAME, manifest)
    return manifest


def check_dataset(directory: Path) -> dict[str, Any]:
    """The manifest of a directory whose files are all as it says; raises ManifestError otherwise."""
    if not directory.is_dir():
        raise ManifestError(f"{directory}: no such directory; prepare it with a script of data_prep/")
    manifest = _read_manifest(directory / NAME)
    for name, expected in manifest["files"].items():
        file = directory / name
        if not file.is_file():
            raise ManifestError(f"{file}: missing, but {NAME} lists it; run its data_prep/ script again")
        digest = atomic.sha256_file(file)
        if digest != expected["sha256"]:
            raise ManifestError(
                f"{file}: sha256 {digest[:12]}… but {NAME} says {expected['sha256'][:12]}…; the file was changed after "
                f"it was prepared, run its data_prep/ script again"
            )
        try:
            rows = pq.read_metadata(file).num_rows
        except pa.ArrowException as error:
            raise ManifestError(f"{file}: not a parquet file ({error}); run its data_prep/ script again") from error
        if rows != expected["rows"]:
            raise ManifestError(f"{file}: {rows} rows but {NAME} says {expected['rows']}")
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file that is as it was written; raises ManifestError."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if fault := _fault(manifest):
            raise ValueError(fault)
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; the dataset is unfinished, run its data_prep/ script again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not a manifest ({error}); run its data_prep/ script again") from error
    if manifest["schema"] != 1 and manifest.get("digest") != _digest(manifest):
        raise ManifestError(f"{path}: changed after it was written; run its data_prep/ script again")
    return manifest


def _fault(manifest: Any) -> str | None:
    """What keeps a JSON value from being a manifest, or None."""
    if not isinstance(manifest, dict):
        return f"expected an object, found {type(manifest).__name__}"
    kinds = {"schema": int, "columns": list, "source": dict, "counts": dict, "files": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name}: expected {kind.__name__}, found {type(manifest.get(name)).__name__}"
    if "tokens" not in manifest or not isinstance(manifest["counts"].get("kept"), dict) or not manifest["files"]:
        return "it lists no files, no counts of kept rows or no tokens"
    if not {"id", "licence"} <= set(manifest["source"]):
        return "source: expected id and licence"
    for name, entry in manifest["files"].items():
        if not name or Path(name).name != name or not isinstance(entry, dict):
            return f"files: {name!r}: expected the name of a file beside it, with rows and sha256"
        if not isinstance(entry.get("rows"), int) or not isinstance(entry.get("sha256"), str):
            return f"files: {name!r}: expected rows and sha256"
    return None


def _digest(manifest: dict[str, Any]) -> str:
    """A digest of everything else that the manifest says."""
    said = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "digest"}))
    return bytes_digest(json.dumps(said, sort_keys=True).encode())


def split_path(directory: Path, manifest: dict[str, Any], split: str) -> Path:
    """The file of a split that the manifest vouches for; raises ManifestError where it lists none."""
    name = f"{split}.parquet"
    if name not in manifest["files"]:
        raise ManifestError(f"{directory}: its manifest lists no {split} split, only {', '.join(manifest['files'])}")
    return directory / name


def _columns(splits: dict[str, list[Row]] | dict[str, list[TextRow]]) -> set[str]:
    return {name for rows in splits.values() for row in rows[:1] for name in vars(row)}


def _histogram(splits: dict[str, list[Row]] | dict[str, list[TextRow]]) -> dict[str, dict[str, int]]:
    """Rows per bar of `HISTOGRAM_STEP` tokens, by split; a bar is named by its first length."""
    histogram = {}
    for split, rows in splits.items():
        bars = Counter(row.n_tokens // HISTOGRAM_STEP * HISTOGRAM_STEP for row in rows if row.n_tokens is not None)
        histogram[split] = {str(bar): bars[bar] for bar in sorted(bars)}
    return histogram
