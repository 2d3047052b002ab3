"""What a round of expert iteration came to: in `rounds.json`, and as a table."""

from collections import Counter
from pathlib import Path
from typing import Any

from posttrain import atomic, lineage
from posttrain.data.benchmarks import benchmark_names
from posttrain.data.manifest import check_dataset
from posttrain.evaluation.estimates import in_percent, wilson_interval
from posttrain.evaluation.results import read_metrics
from posttrain.grading.grader import Verdict
from posttrain.pipelines import rollouts
from posttrain.pipelines.candidates import Rule, accepted, why_nothing
from posttrain.pipelines.rollouts import read_rollouts
from posttrain.report.round_figure import draw_rounds

ROUNDS_FILE = "rounds.json"


def summarise_sampling(directory: Path, earlier: list[Path], rule: Rule) -> dict[str, Any]:
    """The stage's own figures, and what was accepted: candidates, questions, and solutions no `earlier` round had."""
    metrics = rollouts.read_metrics(directory / "rollouts")
    sampled = [path for one in earlier if (path := one / "rollouts").is_dir()]
    known = {(r.id, c.text) for path in sampled for r in read_rollouts(path) for c in accepted(r, rule)}
    questions = {question for question, _ in known}
    found: Counter[str] = Counter()
    solutions = set()
    for rollout in read_rollouts(directory / "rollouts"):
        kept = accepted(rollout, rule)
        found["accepted"] += len(kept)
        found["questions_accepted"] += bool(kept)
        found["questions_first_solved"] += bool(kept) and rollout.id not in questions
        solutions |= {(rollout.id, candidate.text) for candidate in kept}
    return {
        **metrics,
        **{name: found[name] for name in ("accepted", "questions_accepted", "questions_first_solved")},
        "accept_rate": found["accepted"] / metrics["candidates"],
        "new_solutions": len(solutions - known),
    }


def nothing_accepted(rollouts: Path) -> str:
    """Why no candidate of a finished sampling stage was accepted."""
    found: Counter[str] = Counter()
    cut_off = 0
    for rollout in read_rollouts(rollouts):
        for candidate in rollout.candidates:
            found[candidate.verdict] += 1
            cut_off += candidate.verdict == Verdict.CORRECT and candidate.finish_reason == "length"
    return why_nothing(dict(found), cut_off)


def summarise_training(directory: Path) -> dict[str, Any]:
    run = lineage.read_json(directory / "sft" / lineage.RUN_FILE)
    assert run is not None and run["result"]
    return {
        "rows_trained": check_dataset(directory / "data")["counts"]["kept"]["train"],
        "tokens_trained": run["result"]["tokens_seen"],
        "steps": run["result"]["steps"],
        "loss": run["result"]["last_loss"],
    }


def summarise_evaluation(evals: Path, benchmarks: str) -> dict[str, Any]:
    """Accuracy with interval of each benchmark, and of all questions together where there are several."""
    metrics = {name: read_metrics(evals / name) for name in benchmark_names(benchmarks)}
    summary = {
        name: {"n": m["n"], **m["accuracy"], "format_rate": m["format_rate"], "truncation_rate": m["truncation_rate"]}
        for name, m in metrics.items()
    }
    correct, n = sum(m["counts"]["correct"] for m in metrics.values()), sum(m["n"] for m in metrics.values())
    low, high = wilson_interval(correct, n)
    return {**summary, "all": {"n": n, "value": correct / n, "low": low, "high": high}}


def table(records: list[dict[str, Any]]) -> str:
    """One line per round for the terminal."""
    heads = ("round", "accuracy", "accepted", "solved", "new", "tokens", "entropy", "rows", "trained on")
    lines = ["{:>5}  {:<24}{:>14}{:>13}{:>7}{:>8}{:>9}{:>7}{:>12}".format(*heads)]
    for r in records:
        a = r["evaluation"]["all"]
        interval = in_percent(a["value"], a["low"], a["high"])
        line = f"{r['round']:>5}  {interval:<24}"
        if r["round"]:
            accepted_share = f"{r['accepted']} ({r['accept_rate']:.0%})"
            solved = f"{r['questions_accepted']}/{r['questions']}"
            entropy = "-" if r["entropy"] is None else f"{r['entropy']:.3f}"
            trained = "skipped" if r["skipped"] else f"{r['tokens_trained']} tok"
            line += f"{accepted_share:>14}{solved:>13}{r['new_solutions']:>7}{r['tokens_per_candidate']:>8.0f}"
            line += f"{entropy:>9}{r.get('rows_trained', 0):>7}{trained:>12}"
        lines.append(line)
    return "\n".join(lines)


def write_summary(output_dir: Path, records: list[dict[str, Any]]) -> None:
    """`rounds.json` and the curve over rounds."""
    atomic.write_json(output_dir / ROUNDS_FILE, records)
    draw_rounds(records, output_dir)
