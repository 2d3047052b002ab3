"""Compute the figures of metrics.json from graded samples. Nothing is ever dropped from a denominator.

Of a sample they need a line of samples.jsonl: its question's `id`, `verdict`, `tokens`, `finish_reason`, whether it is
in the prompt's format (`format`; `format_compat` as published graders test it), whether it is correct when unmarked
answers count too (`correct_lenient`), and its `vote`: 0 for the gold's class of equal answers, 1, 2, … for others, None
for no answer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.evaluation.estimates import (
    bootstrap_interval,
    clustered_interval,
    count_verdicts,
    length_edges,
    length_summary,
    maj_at_k,
    pass_at_k,
    percentile_intervals,
    rate,
    standard_error,
    wilson_interval,
)
from posttrain.grading.grader import Verdict

Samples = Sequence[dict[str, Any]]
SHORTEST_BUDGET = 512  # tokens; the budgets double from here

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def compute_metrics(samples: Samples) -> dict[str, Any]:
    """Counts, rates, accuracies with their intervals and lengths, over all samples."""
    n = len(samples)
    completed = [sample for sample in samples if sample["finish_reason"] != "length"]
    return {
        "n": n,
        "questions": len({sample["id"] for sample in samples}),
        "counts": count_verdicts([sample["verdict"] for sample in samples]),
        "accuracy": accuracy(by_question(samples, is_correct)),
        "accuracy_strict": accuracy(by_question(samples, lambda s: is_correct(s) and s["format"])),
        "accuracy_lenient": accuracy(by_question(samples, lambda s: s["correct_lenient"])),
        "accuracy_completed": accuracy(by_question(completed, is_correct)) if completed else None,
        "pass_at_k": at_ks(by_question(samples, is_correct), lambda x, k: pass_at_k(len(x), sum(x), k)),
        "maj_at_k": at_ks(by_question(samples, lambda s: s["vote"]), maj_at_k),
        "format_rate": rate(sum(s["format"] for s in samples), n),
        "format_compat_rate": rate(sum(s["format_compat"] for s in samples), n),
        "format_by_correct": format_table(samples),
        "truncation_rate": rate(n - len(completed), n),
        "tokens": {
            str(group): length_summary([s["tokens"] for s in samples if group in ("all", s["verdict"])])
            for group in ("all", Verdict.CORRECT, Verdict.WRONG, Verdict.TRUNCATED)
        },
        "tokens_percentile_intervals": percentile_intervals(by_question(samples, lambda s: s["tokens"])),
        "accuracy_by_length": accuracy_by_length(samples, length_edges([s["tokens"] for s in samples])),
        "accuracy_within_budget": accuracy_within_budget(samples),
    }


def is_correct(sample: dict[str, Any]) -> bool:
    return sample["verdict"] == Verdict.CORRECT


def questions_of(samples: Samples, value: Callable[[dict[str, Any]], Any]) -> dict[str, list[Any]]:
    """The value of each sample by its question's id, truth as 0 and 1."""
    questions: dict[str, list[Any]] = {}
    for sample in samples:
        found = value(sample)
        questions.setdefault(sample["id"], []).append(int(found) if isinstance(found, bool) else found)
    return questions


def by_question(samples: Samples, value: Callable[[dict[str, Any]], Any]) -> list[list[Any]]:
    return list(questions_of(samples, value).values())


def accuracy(questions: list[list[int]]) -> dict[str, Any]:
    """Mean over samples (avg@k for k of each question) and its interval.

    Wilson's for one sample a question, else with the question as the unit.
    """
    correct, n = sum(map(sum, questions)), sum(map(len, questions))
    if len(questions) > 1 and max(map(len, questions)) > 1:
        value, low, high = clustered_interval(questions)
        name = "question_clustered_t95"
    else:
        value, (low, high), name = rate(correct, n), wilson_interval(correct, n), "wilson95"
    error = standard_error(questions) if len(questions) > 1 else None
    return {"value": value, "low": low, "high": high, "interval": name, "standard_error": error, "n": n}


def macro_mean(accuracies: list[dict[str, Any]]) -> dict[str, float] | None:
    """Mean of benchmarks' accuracies, each counting alike, with a normal 95 % interval; None where one has no error."""
    errors = [estimate["standard_error"] for estimate in accuracies]
    if None in errors or not errors:
        return None
    value = sum(estimate["value"] for estimate in accuracies) / len(accuracies)
    half = Z95 * math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def at_ks(questions: list[list[Any]], measure: Callable[[list[Any], int], float]) -> dict[str, dict[str, float]]:
    """A measure of k of a question's samples, for k = 1, 2, 4, … and all of them; empty for one sample a question."""
    samples = min(map(len, questions), default=0)
    powers = {2**power for power in range(samples.bit_length()) if 2**power <= samples}
    result = {}
    for k in sorted(powers | {samples}) if samples > 1 else []:
        values = [measure(question, k) for question in questions]
        low, high = bootstrap_interval(values)
        result[str(k)] = {"value": sum(values) / len(values), "low": low, "high": high}
    return result


def format_table(samples: Samples) -> dict[str, int]:
    """Samples by format and correctness: a gain in format alone moves between rows, not between columns."""
    cells = [("formatted" if s["format"] else "unformatted", is_correct(s)) for s in samples]
    return {
        f"{shape}_{'correct' if right else 'incorrect'}": cells.count((shape, right))
        for shape in ("formatted", "unformatted")
        for right in (True, False)
    }


def accuracy_by_length(samples: Samples, edges: list[float]) -> dict[str, Any]:
    """Samples and accuracy in bins of length, given the edges: this run's own, or those of the run compared with.

    A bin holds edge ≤ tokens < next edge, the last one its upper edge too; what lies outside is in the outer bins.
    """
    inner = edges[1:-1]
    bins: list[list[int]] = [[] for _ in range(len(inner) + 1)] if edges else []
    for sample in samples if edges else ():
        bins[sum(sample["tokens"] >= edge for edge in inner)].append(int(is_correct(sample)))
    return {
        "edges": edges,
        "bins": [{"n": len(found), "accuracy": rate(sum(found), len(found)) if found else None} for found in bins],
    }


def accuracy_within_budget(samples: Samples) -> dict[str, float]:
    """Share of samples that are correct and no longer than 512, 1024, … tokens, up to the longest sample."""
    longest, budget, curve = max((s["tokens"] for s in samples), default=0), SHORTEST_BUDGET, {}
    while samples:
        curve[str(budget)] = rate(sum(is_correct(s) and s["tokens"] <= budget for s in samples), len(samples))
        if budget >= longest:
            break
        budget *= 2
    return curve
