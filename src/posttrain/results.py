"""Files of an evaluation: samples.jsonl first, metrics.json last, with counts that add up or are not written."""

import json
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.errors import PosttrainError
from posttrain.grading import Verdict
from posttrain.metrics import count_verdicts, length_summary, rate, wilson_interval

SCHEMA_VERSION = 1
SAMPLES_FILE = "samples.jsonl"
METRICS_FILE = "metrics.json"


class ResultError(PosttrainError):
    """A result that contradicts itself, or a directory that holds another one."""


def existing_metrics(directory: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The finished result of the same settings in `directory`, or None; raises ResultError for another's."""
    try:
        metrics = json.loads((directory / METRICS_FILE).read_text())
    except FileNotFoundError:
        return None
    different = [key for key in settings if metrics.get(key) != settings[key]]
    if different:
        raise ResultError(
            f"{directory}: holds a result of other settings ({', '.join(different)}); choose another --output_dir or "
            f"remove it"
        )
    return metrics


def write_result(directory: Path, settings: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Write both files and return the metrics."""
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    atomic.write_bytes(directory / SAMPLES_FILE, "".join(lines).encode())
    metrics = {**settings, **compute_metrics(samples)}
    check_counts(metrics)
    atomic.write_json(directory / METRICS_FILE, metrics)
    return metrics


def compute_metrics(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, rates and lengths of one sample per question. Nothing is ever dropped from a denominator."""
    verdicts = [sample["verdict"] for sample in samples]
    counts, n = count_verdicts(verdicts), len(samples)
    low, high = wilson_interval(counts["correct"], n)
    boxed = sum(sample["boxed"] for sample in samples)
    lengths = {
        group: length_summary([s["tokens"] for s in samples if group in ("all", s["verdict"])])
        for group in ("all", Verdict.CORRECT, Verdict.WRONG, Verdict.TRUNCATED)
    }
    return {
        "n": n,
        "counts": counts,
        "accuracy": {"value": rate(counts["correct"], n), "low": low, "high": high, "interval": "wilson95"},
        "format_rate": rate(boxed, n),
        "truncation_rate": rate(sum(s["finish_reason"] == "length" for s in samples), n),
        "tokens": {str(group): summary for group, summary in lengths.items()},
    }


def check_counts(metrics: dict[str, Any]) -> None:
    """Raise ResultError unless every sample is counted under exactly one outcome."""
    total = sum(metrics["counts"].values())
    if total != metrics["n"]:
        raise ResultError(f"counts add up to {total}, but there are {metrics['n']} samples: {metrics['counts']}")


def table(results: list[dict[str, Any]]) -> str:
    """One line per benchmark for the terminal."""
    lines = [f"{'benchmark':<14}{'n':>6}  {'accuracy':<24}{'boxed':>8}{'cut off':>9}{'tokens':>8}"]
    for metrics in results:
        accuracy, tokens = metrics["accuracy"], metrics["tokens"]["all"]
        interval = f"{accuracy['value']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}]"
        mean = f"{tokens['mean']:.0f}" if tokens else "-"
        limited = "" if metrics["limit"] is None else f"  (first {metrics['limit']} only)"
        lines.append(
            f"{metrics['benchmark']:<14}{metrics['n']:>6}  {interval:<24}{metrics['format_rate']:>8.1%}"
            f"{metrics['truncation_rate']:>9.1%}{mean:>8}{limited}"
        )
    return "\n".join(lines)
