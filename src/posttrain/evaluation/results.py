"""Write the files of an evaluation: samples survive an interruption; metrics.json comes last and must add up."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import in_percent
from posttrain.evaluation.scoring import compute_metrics, macro_mean
from posttrain.generation.sample import Sample

SCHEMA_VERSION = 2
SETTINGS_FILE = "settings.json"
PARTIAL_FILE = "samples.partial.jsonl"
SAMPLES_FILE = "samples.jsonl"
METRICS_FILE = "metrics.json"


class ResultError(PosttrainError):
    """A result that contradicts itself, or a directory that holds another one."""


class Result:
    """The directory of one benchmark's result: `settings.json` first, samples as they come, `metrics.json` last."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Open `directory` for a result of `settings`; raises ResultError where it holds one of others."""
        self.directory, self.settings = directory, settings
        self.partial = directory / PARTIAL_FILE
        existing = _read(directory / SETTINGS_FILE)
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
        return _read(self.directory / METRICS_FILE)

    def sampled(self) -> list[Sample]:
        """Samples that an interrupted evaluation left; a line cut in the middle is dropped."""
        found: dict[int, Sample] = {}
        for line in self.partial.read_bytes().split(b"\n") if self.partial.is_file() else []:
            try:
                sample = Sample(**json.loads(line.decode()))
            except (ValueError, TypeError):
                break
            found[sample.index] = sample
        samples = list(found.values())
        atomic.write_bytes(self.partial, "".join(_line(asdict(sample)) for sample in samples).encode())
        return samples

    def keep(self, sample: Sample) -> None:
        """Add a sample to what survives an interruption."""
        with self.partial.open("a") as file:
            file.write(_line(asdict(sample)))

    def finish(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Write samples and metrics, and return the metrics."""
        atomic.write_bytes(self.directory / SAMPLES_FILE, "".join(map(_line, samples)).encode())
        metrics = write_metrics(self.directory, self.settings, samples)
        self.partial.unlink(missing_ok=True)
        return metrics


def rebuild(directory: Path) -> dict[str, Any]:
    """metrics.json from settings.json and samples.jsonl, without a model; the same bytes as the evaluation wrote."""
    settings = _read(directory / SETTINGS_FILE)
    if settings is None or not (directory / SAMPLES_FILE).is_file():
        raise ResultError(f"{directory}: has no {SETTINGS_FILE} and {SAMPLES_FILE}; expected evals/<run>/<benchmark>")
    samples = [json.loads(line) for line in (directory / SAMPLES_FILE).read_text().split("\n") if line]
    return write_metrics(directory, settings, samples)


def write_metrics(directory: Path, settings: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = {**settings, **compute_metrics(samples)}
    check_counts(metrics)
    atomic.write_json(directory / METRICS_FILE, metrics)
    return metrics


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


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
    lines.append("strict: in the prompt's format, too. lenient: unmarked answers count. uncut: of those not cut off")
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
