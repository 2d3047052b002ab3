"""The questions of a benchmark, checked against their manifest and their declared number."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.errors import PosttrainError

DECLARATIONS = Path(__file__).with_name("benchmarks.yaml")


class BenchmarkError(PosttrainError):
    """A benchmark that is unknown, not prepared, or not the set it claims to be."""


@dataclass(frozen=True)
class Benchmark:
    """Questions in a fixed order, the digest of the file they came from, `k`, samples a question where sampled, the
    prompt that is usual for it, and how far an answer may be from a gold that is rounded."""

    name: str
    rows: list[dict[str, Any]]
    sha256: str
    limit: int | None
    k: int
    prompt: str
    answer_tolerance: dict[str, Any] | None = None


def benchmark_names(names: str) -> list[str]:
    """The names in a comma-separated list, in its order."""
    return [name.strip() for name in names.split(",") if name.strip()]


def load_benchmarks(names: str, data_dir: Path, limit: int | None) -> list[Benchmark]:
    """The benchmarks named in a comma-separated list, all of them checked before the first is used."""
    declared, wanted = declarations(), benchmark_names(names)
    unknown = [name for name in wanted if name not in declared]
    if unknown or not wanted:
        raise BenchmarkError(f"benchmarks: {names!r}: unknown: {', '.join(unknown)}; known: {', '.join(declared)}")
    return [_load(name, declared[name], data_dir, limit) for name in wanted]


@functools.cache
def declarations() -> dict[str, dict[str, Any]]:
    """Every benchmark of benchmarks.yaml by name, in its order."""
    return yaml.safe_load(DECLARATIONS.read_text())


def declaration(name: str) -> dict[str, Any]:
    """What a benchmark that data_prep/benchmarks.py prepares is declared to be."""
    declared = declarations()
    known = [key for key, value in declared.items() if "hub" in value]
    if name not in known:
        raise BenchmarkError(f"{name}: not prepared by data_prep/benchmarks.py; it knows {', '.join(known)}")
    return declared[name]


def _load(name: str, declared: dict[str, Any], data_dir: Path, limit: int | None) -> Benchmark:
    path = data_dir / declared["file"]
    if not path.is_file():
        raise BenchmarkError(f"{path}: missing; benchmark {name} is written by python {declared['script']}")
    manifest = check_dataset(path.parent)
    split_path(path.parent, manifest, path.stem)
    rows = read_parquet(path, QUESTIONS)
    expected = declared.get("n")
    if expected is not None and len(rows) != expected:
        raise BenchmarkError(f"{path}: {len(rows)} questions, but {name} has {expected}; it is another set")
    limit = limit if limit is not None and limit < len(rows) else None
    digest = manifest["files"][path.name]["sha256"]
    tolerance = declared.get("answer_tolerance")
    return Benchmark(name, by_content(rows, limit), digest, limit, declared["k"], declared["prompt"], tolerance)
