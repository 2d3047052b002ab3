"""Files of an evaluation: samples survive an interruption, metrics.json is written last, counts add up or are not."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.errors import PosttrainError
from posttrain.grading import Verdict
from posttrain.metrics import (
    bootstrap_interval,
    clustered_interval,
    count_verdicts,
    length_summary,
    pass_at_k,
    rate,
    wilson_interval,
)

SCHEMA_VERSION = 1
SETTINGS_FILE = "settings.json"
PARTIAL_FILE = "samples.partial.jsonl"
SAMPLES_FILE = "samples.jsonl"
METRICS_FILE = "metrics.json"


class ResultError(PosttrainError):
    """A result that contradicts itself, or a directory that holds another one."""


@dataclass(frozen=True)
class Sample:
    """One completion. `index` counts questions × samples; `tokens` counts neither padding nor the stop token."""

    index: int
    text: str
    tokens: int
    finish_reason: str  # `stop` or `length`


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
        for line in self.partial.read_text().split("\n") if self.partial.is_file() else []:
            try:
                sample = Sample(**json.loads(line))
            except ValueError:
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


def compute_metrics(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, rates and lengths over all samples. Nothing is ever dropped from a denominator."""
    counts, n = count_verdicts([sample["verdict"] for sample in samples]), len(samples)
    questions: dict[str, list[int]] = {}
    for sample in samples:
        questions.setdefault(sample["id"], []).append(int(sample["verdict"] == Verdict.CORRECT))
    lengths = {
        group: length_summary([s["tokens"] for s in samples if group in ("all", s["verdict"])])
        for group in ("all", Verdict.CORRECT, Verdict.WRONG, Verdict.TRUNCATED)
    }
    return {
        "n": n,
        "questions": len(questions),
        "counts": counts,
        "accuracy": accuracy(list(questions.values())),
        "pass_at_k": pass_at_ks(list(questions.values())),
        "format_rate": rate(sum(s["boxed"] for s in samples), n),
        "truncation_rate": rate(sum(s["finish_reason"] == "length" for s in samples), n),
        "tokens": {str(group): summary for group, summary in lengths.items()},
    }


def accuracy(questions: list[list[int]]) -> dict[str, Any]:
    """Mean over samples with its interval: Wilson's for one sample a question, else over questions."""
    if len(questions) > 1 and max(map(len, questions)) > 1:
        value, low, high = clustered_interval(questions)
        return {"value": value, "low": low, "high": high, "interval": "question_clustered_t95"}
    correct, n = sum(map(sum, questions)), sum(map(len, questions))
    low, high = wilson_interval(correct, n)
    return {"value": rate(correct, n), "low": low, "high": high, "interval": "wilson95"}


def pass_at_ks(questions: list[list[int]]) -> dict[str, dict[str, float]]:
    """pass@k for k = 1, 2, 4, … up to the samples a question has; empty for one sample."""
    samples = min(map(len, questions), default=0)
    result = {}
    for k in [2**power for power in range(samples.bit_length()) if 2**power <= samples] if samples > 1 else []:
        values = [pass_at_k(len(outcomes), sum(outcomes), k) for outcomes in questions]
        low, high = bootstrap_interval(values)
        result[str(k)] = {"value": sum(values) / len(values), "low": low, "high": high}
    return result


def check_counts(metrics: dict[str, Any]) -> None:
    """Raise ResultError unless every sample is counted under exactly one outcome."""
    total = sum(metrics["counts"].values())
    if not total == metrics["n"] == metrics["expected_samples"]:
        raise ResultError(
            f"counts add up to {total} of {metrics['n']} samples, expected {metrics['expected_samples']}: "
            f"{metrics['counts']}"
        )


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
