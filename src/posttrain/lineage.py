"""`run.json`: everything needed to say what a run was, to resume it, and to run it again.

The file is written when a run starts and once more, with `finished`, when it is whole. A copy lies in `final/` as
`lineage.json`, so that a copied checkpoint stays identifiable. Both carry a seal (`posttrain.jsonl`); once the run is
finished, `files` vouches for what it logged.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain import digests, jsonl
from posttrain.errors import PosttrainError, check_writable
from posttrain.secrets import masked, masked_arguments

SCHEMA_VERSION = 1
EDGE_BYTES = 2**20
RUN_FILE = "run.json"
LINEAGE_FILE = "lineage.json"
METRICS_FILE = "metrics.jsonl"
STAMP = {"bytes": int, digests.ALGORITHM: str}
RECORD = {"run_id": str, "result": (dict, type(None)), "finished": (str, type(None))}
ROPE = {"rope_theta": (float, type(None)), "rope_type": str, "max_position_embeddings": int}
LINEAGE = {"run_id": str, "prompt": str, "eos_token": (str, type(None)), "rope": {"base": ROPE, "trained": ROPE}}
PACKAGES = (
    "posttrain", "torch", "transformers", "tokenizers", "trl", "accelerate", "peft", "datasets", "math-verify",
    "latex2sympy2-extended", "antlr4-python3-runtime", "sympy", "deepspeed", "flash-attn", "vllm", "wandb", "numpy",
)  # fmt: skip


class LineageError(PosttrainError):
    """An output directory that belongs to another run."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_state() -> dict[str, Any]:
    """The commit of this checkout and whether files differ from it; nulls where posttrain is not run from git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """Processor count, threads and accelerators of this machine. Imports torch."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    return jsonl.read_object(path, dict, "it was damaged or changed by hand: restore or remove it")


def read_record(output_dir: Path, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The run.json of a run's directory, None where there is none; raises DamageError where it is no record.

    `more` is the shape of other keys that are needed.
    """
    remedy = f"restore it, or remove {output_dir} and start the run again"
    return jsonl.read_object(output_dir / RUN_FILE, RECORD | (more or {}), remedy)


def read_metrics(output_dir: Path, record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, none where it is finished and logged nothing; raises DamageError.

    `record` is its run.json, None where there is none.
    """
    path, files = output_dir / METRICS_FILE, (record or {}).get("files")
    remedy = f"restore it, or remove {output_dir} and start the run again"
    if fault := None if files is None else jsonl.mismatch(files, {str: STAMP}):
        raise digests.DamageError(f"{output_dir / RUN_FILE}: files: {fault}; {remedy}")
    if files is not None and METRICS_FILE not in files:
        return []
    if fault := digests.difference(path, files[METRICS_FILE]) if files else None:
        raise digests.DamageError(f"{path}: {fault}: it was changed or damaged; {remedy}")
    return jsonl.read_lines(path, {"step": int}, remedy)


def read_lineage(model: str | Path) -> dict[str, Any] | None:
    """The lineage of a checkpoint directory, or None for a model that is not ours.

    It travels with `final/`; a checkpoint of a run still lies beside the run's own record.
    """
    path = Path(model)
    beside = path.name.startswith("checkpoint-") and not (path / LINEAGE_FILE).is_file()
    file = path.parent / RUN_FILE if beside else path / LINEAGE_FILE
    return jsonl.read_object(file, LINEAGE, "copy it again, or remove it: prompt and rope are then those of the config")


def fingerprint(model: str) -> dict[str, str] | None:
    """Size, start and end of each weights file of a local directory: cheap, and other weights have another one."""
    prints = {}
    for path in sorted(Path(model).glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(EDGE_BYTES)
            file.seek(max(0, size - EDGE_BYTES))
            prints[path.name] = f"{size}:{hashlib.sha256(start + file.read()).hexdigest()[:16]}"
    return prints or None


def claim(output_dir: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of this same run if `output_dir` holds one, None if the directory is free.

    `identity` is everything that decides the run's numbers. Raises LineageError where the directory belongs to a run of
    another identity, or holds files of nobody known.
    """
    check_writable(output_dir)
    record = read_record(output_dir, {"identity": dict})
    if record is None:
        if output_dir.is_dir() and any(output_dir.glob("checkpoint-*")):
            raise LineageError(f"{output_dir}: holds checkpoints but no {RUN_FILE}; choose another --output_dir")
        return None
    theirs, ours = record["identity"], masked(identity)
    if theirs == ours:
        return record
    different = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    first = different[0]
    raise LineageError(
        f"{output_dir}: belongs to another run ({record['run_id']}), which differs in {', '.join(different)} "
        f"({first}: {theirs.get(first)!r} there, {ours.get(first)!r} here); choose another --output_dir or remove it"
    )


def start_record(output_dir: Path, identity: dict[str, Any], details: dict[str, Any]) -> dict[str, Any]:
    """Write and return the record of a run that begins now."""
    started = now()
    record = {
        "schema": SCHEMA_VERSION,
        "run_id": f"{output_dir.name}-{digest([identity, started])[:8]}",
        "started": started,
        "argv": masked_arguments(sys.argv),
        "code": code_state(),
        "packages": package_versions(),
        "identity": masked(identity),
        **masked(details),
        "result": None,
        "finished": None,
    }
    jsonl.write_sealed(output_dir / RUN_FILE, record)
    return record


def closed(output_dir: Path, record: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that ends now, with a stamp of everything that it logged."""
    stamps = {path.name: digests.stamp(path) for path in sorted(output_dir.glob("*.jsonl"))}
    return {**record, "result": result, "files": stamps, "finished": now()}


def write_closed(output_dir: Path, record: dict[str, Any]) -> None:
    """Write a closed record, which vouches from here on for what the digests of lines did."""
    jsonl.write_sealed(output_dir / RUN_FILE, record)
    for name in record["files"]:
        jsonl.digests_path(output_dir / name).unlink(missing_ok=True)
