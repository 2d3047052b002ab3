"""Write the files of an evaluation: samples survive an interruption; metrics.json comes last and must add up.

What is read back is as it was written: complete.json holds digests, each line of what survives an interruption its own.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import atomic, digests, jsonl
from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import in_percent
from posttrain.evaluation.scoring import compute_metrics, macro_mean
from posttrain.generation.sample import Sample
from posttrain.grading.grader import Verdict

SCHEMA_VERSION = 2
SETTINGS_FILE = "settings.json"
PARTIAL_FILE = "samples.partial.jsonl"
SAMPLES_FILE = "samples.jsonl"
COMPRESSED_FILE = "samples.jsonl.gz"  # of a result that is kept
METRICS_FILE = "metrics.json"

ESTIMATE = {"value": float, "low": float, "high": float}
MAYBE_NUMBER = (float, type(None))
SETTINGS = {
    "schema": int, "benchmark": str, "data_sha256": str, "limit": (int, type(None)), "expected_samples": int,
    "checkpoint": {"name": str}, "grader": {"name": str}, "prompt": {"name": str, "form": str},
    "decoding": {"temperature": float, "num_samples": int, "max_new_tokens": int},
}  # fmt: skip
METRICS = {
    **SETTINGS, "n": int, "questions": int, "counts": {str: int}, "truncation_rate": float, "format_rate": float,
    "accuracy": {**ESTIMATE, "standard_error": MAYBE_NUMBER}, "accuracy_strict": ESTIMATE, "accuracy_lenient": ESTIMATE,
    "accuracy_completed": (ESTIMATE, type(None)), "pass_at_k": {str: ESTIMATE}, "maj_at_k": {str: ESTIMATE},
    "tokens": {"all": ({"mean": float, "p10": float, "p50": float, "p90": float, "p99": float}, type(None))},
    "accuracy_within_budget": {str: float},
    "accuracy_by_length": {"edges": [float], "bins": [{"n": int, "accuracy": MAYBE_NUMBER}]},
}  # fmt: skip
GRADED = {
    "id": str, "sample": int, "prompt_hash": str, "completion": str, "finish_reason": {"stop", "length"}, "tokens": int,
    "format": bool, "format_compat": bool, "answer": (str, type(None)), "gold": str,
    "verdict": {verdict.value for verdict in Verdict}, "correct_lenient": bool, "vote": (int, type(None)),
}  # fmt: skip
SAMPLED = {"index": int, "text": str, "tokens": int, "finish_reason": {"stop", "length"}}


class ResultError(PosttrainError):
    """A result that contradicts itself, or a directory that holds another one."""


class Result:
    """The directory of one benchmark's result: `settings.json` first, samples as they come, `metrics.json` last."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Open `directory` for a result of `settings`; raises ResultError where it holds one of others."""
        self.directory, self.settings = directory, settings
        self.partial = directory / PARTIAL_FILE
        existing = jsonl.read_object(directory / SETTINGS_FILE, dict, f"remove {directory} and evaluate again")
        if existing is None:
            if any((directory / name).exists() for name in (METRICS_FILE, SAMPLES_FILE, PARTIAL_FILE)):
                raise ResultError(f"{directory}: holds a result without {SETTINGS_FILE}; choose another --output_dir")
            atomic.write_json(directory / SETTINGS_FILE, settings)
        elif existing != settings:
            different = [key for key in {*existing, *settings} if existing.get(key) != settings.get(key)]
            raise ResultError(
                f"{directory}: holds a result of other settings ({', '.join(sorted(different))}); choose another "
                f"--output_dir or remove it"
            )

    def metrics(self) -> dict[str, Any] | None:
        """The finished metrics, or None."""
        return read_metrics(self.directory) if (self.directory / METRICS_FILE).exists() else None

    def sampled(self) -> list[Sample]:
        """Samples that an interrupted evaluation left; a line that is cut or damaged is sampled again."""
        found: dict[int, Sample] = {}
        lines = self.partial.read_bytes().splitlines(keepends=True) if self.partial.is_file() else []
        for values in jsonl.unsealed(lines, SAMPLED):
            if values and 0 <= values["index"] < self.settings["expected_samples"]:
                found[values["index"]] = Sample(**{key: values[key] for key in SAMPLED})
        if lines:
            atomic.write_bytes(self.partial, _lines(jsonl.sealed(asdict(sample)) for sample in found.values()))
        return list(found.values())

    def keep(self, sample: Sample) -> None:
        """Add a sample to what survives an interruption."""
        with self.partial.open("a") as file:
            file.write(jsonl.sealed(asdict(sample)))

    def finish(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Write samples and metrics, and return the metrics."""
        metrics = write_result(self.directory, self.settings, samples)
        self.partial.unlink(missing_ok=True)
        return metrics


def samples_path(directory: Path) -> Path:
    """Where the samples of a result lie: `samples.jsonl`, or compressed beside where it would be."""
    plain, compressed = directory / SAMPLES_FILE, directory / COMPRESSED_FILE
    return compressed if compressed.is_file() and not plain.is_file() else plain


def write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """Write graded samples, compressed where the name ends in .gz; the same samples are the same bytes."""
    content = _lines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    atomic.write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(lines).encode()


def read_metrics(directory: Path) -> dict[str, Any]:
    """metrics.json of a finished evaluation; raises ResultError or DamageError where it is not as it was written."""
    path, remedy = directory / METRICS_FILE, f"make it again: python src/score.py {directory}"
    digests.check_files(directory, [METRICS_FILE], remedy)
    metrics = jsonl.read_object(path, {"schema": int}, remedy)
    if metrics is None:
        raise ResultError(f"{path}: missing; expected a finished evaluation, evals/<run>/<benchmark>")
    if metrics["schema"] != SCHEMA_VERSION:
        raise ResultError(f"{path}: of schema {metrics['schema']}, expected {SCHEMA_VERSION}; evaluate it again")
    if fault := jsonl.mismatch(metrics, METRICS):
        raise ResultError(f"{path}: {fault}; {remedy}")
    lengths = metrics["accuracy_by_length"]
    if len(lengths["bins"]) != max(len(lengths["edges"]) - 1, 0):
        raise ResultError(f"{path}: accuracy_by_length: {len(lengths['bins'])} bins between its edges; {remedy}")
    return metrics


def read_samples(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """settings.json and samples.jsonl, each sample there once; raises ResultError or DamageError otherwise."""
    remedy, path = f"remove {directory} and evaluate again", samples_path(directory)
    if not path.is_file() or not (directory / SETTINGS_FILE).is_file():
        raise ResultError(f"{directory}: has no {SETTINGS_FILE} and {SAMPLES_FILE}; expected evals/<run>/<benchmark>")
    digests.check_files(directory, [SETTINGS_FILE, path.name], remedy)
    settings = jsonl.read_object(directory / SETTINGS_FILE, SETTINGS, remedy) or {}
    samples = jsonl.read_lines(path, GRADED, remedy)
    per_question = settings["decoding"]["num_samples"]
    counted = Counter((sample["id"], sample["sample"]) for sample in samples)
    questions = sorted({sample["id"] for sample in samples})
    twice = (place for place in sorted(counted) if counted[place] > 1)
    missing = ((question, k) for question in questions for k in range(per_question) if (question, k) not in counted)
    if wrong := next(twice, None) or next(missing, None):  # the first that is missing: nobody knows how many there are
        where = f"{path}: question {wrong[0]}, sample {wrong[1]}"
        raise ResultError(f"{where}: there {counted[wrong]} times, expected once; {remedy}")
    if len(samples) != settings["expected_samples"]:
        expected_samples = settings["expected_samples"]
        raise ResultError(f"{path}: has {len(samples)} samples, expected {expected_samples}; {remedy}")
    return settings, samples


def rebuild(directory: Path) -> dict[str, Any]:
    """metrics.json from settings.json and samples.jsonl, without a model; the same bytes as the evaluation wrote."""
    return write_metrics(directory, *read_samples(directory))


def write_result(directory: Path, settings: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Write all files of a result, in place of those of an older verifier; returns its metrics.

    A kill in between leaves a result that nothing vouches for, with the older settings, which is graded again.
    """
    (directory / digests.MARK).unlink(missing_ok=True)
    write_samples(samples_path(directory), samples)
    atomic.write_json(directory / SETTINGS_FILE, settings)
    return write_metrics(directory, settings, samples)


def write_metrics(directory: Path, settings: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """metrics.json, and before it the mark that vouches for the three files."""
    metrics = {**settings, **compute_metrics(samples)}
    check_counts(metrics)
    content = atomic.json_bytes(metrics)
    written = {name: digests.stamp(directory / name) for name in (SETTINGS_FILE, samples_path(directory).name)}
    digests.write_mark(directory, {**written, METRICS_FILE: digests.stamp_bytes(content)})
    atomic.write_bytes(directory / METRICS_FILE, content)
    return metrics


def check_counts(metrics: dict[str, Any]) -> None:
    """Raise ResultError unless every sample is counted under exactly one outcome."""
    total = sum(metrics["counts"].values())
    if not total == metrics["n"] == metrics["expected_samples"]:
        raise ResultError(
            f"counts add up to {total} of {metrics['n']} samples, expected {metrics['expected_samples']}: "
            f"{metrics['counts']}"
        )


def table(results: list[dict[str, Any]]) -> str:
    """One line per benchmark for the terminal, and their mean where they are several."""
    heads = f"{'strict':>8}{'lenient':>9}{'cut off':>9}{'uncut':>8}{'format':>8}{'tokens':>8}"
    lines = [f"{'benchmark':<14}{'n':>6}  {'accuracy':<24}{heads}"]
    for metrics in results:
        lines.append(_table_line(metrics))
    if len(results) > 1 and (mean := macro_mean([metrics["accuracy"] for metrics in results])):
        lines.append(f"{'mean':<20}  {_interval(mean)}")
    return "\n".join(lines)


def _table_line(metrics: dict[str, Any]) -> str:
    strict, lenient, uncut = (metrics[f"accuracy_{name}"] for name in ("strict", "lenient", "completed"))
    tokens, limit = metrics["tokens"]["all"], metrics["limit"]
    cells = [
        f"{metrics['benchmark']:<14}{metrics['n']:>6}  {_interval(metrics['accuracy']):<24}",
        f"{strict['value']:>8.1%}{lenient['value']:>9.1%}{metrics['truncation_rate']:>9.1%}",
        f"{uncut['value']:>8.1%}" if uncut else f"{'-':>8}",
        f"{metrics['format_rate']:>8.1%}",
        f"{tokens['mean']:>8.0f}" if tokens else f"{'-':>8}",
        "" if limit is None else f"  (first {limit} only)",
    ]
    return "".join(cells)


def _interval(estimate: dict[str, Any]) -> str:
    return in_percent(estimate["value"], estimate["low"], estimate["high"])
