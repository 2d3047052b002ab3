"""Decide whether an evaluation reproduces a published score of the same setting, within sampling error."""

from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import in_percent, wilson_interval

REFERENCES = Path(__file__).with_name("references.yaml")
NAMES_IN_PAPERS = {"question_only": "no template"}
SUSPECTS = (
    "the prompt (settings.json names it, samples.jsonl its hash)",
    "the end tokens (a base model lists one and writes another; a high truncation rate shows it)",
    "rope_theta and the longest position (python src/rope.py show), or a max_new_tokens that cuts answers off",
)


def setting_of(metrics: dict[str, Any]) -> str:
    """How papers write what decides a score, such as `no template, greedy, 3000 tokens`."""
    prompt, decoding = metrics["prompt"]["name"], metrics["decoding"]
    drawn = f"temperature {decoding['temperature']:g}" if decoding["temperature"] else "greedy"
    return f"{NAMES_IN_PAPERS.get(prompt, prompt)}, {drawn}, {decoding['max_new_tokens']} tokens"


def find_reference(metrics: dict[str, Any]) -> dict[str, Any]:
    """The published row of this evaluation; raises PosttrainError with the rows there are where none is like it."""
    model, benchmark, setting = Path(metrics["checkpoint"]["name"]).name, metrics["benchmark"], setting_of(metrics)
    if metrics["limit"] is not None:
        raise PosttrainError(f"{benchmark}: only the first {metrics['limit']} questions; published scores are of all")
    rows = [row for row in yaml.safe_load(REFERENCES.read_text()) if row["model"] == model]
    for row in rows:
        if row["benchmark"] == benchmark and row["setting"] == setting:
            return row
    known = "; ".join(f"{row['benchmark']} ({row['setting']})" for row in rows) or "none"
    raise PosttrainError(f"no published score of {model} on {benchmark} ({setting}); known of it: {known}")


def verdict(metrics: dict[str, Any], row: dict[str, Any]) -> tuple[bool, str]:
    """Whether the score lies in the 95 % interval of the published one at this number of questions, and what to say."""
    published, ours, n = row["value"] / 100, metrics["accuracy"], metrics["questions"]
    low, high = wilson_interval(round(published * n), n)
    within = low <= ours["value"] <= high
    reached = in_percent(ours["value"], ours["low"], ours["high"])
    said = (
        f"{row['model']} on {row['benchmark']}, {row['setting']}: {reached}, published "
        f"{published:.1%} ({row['source']}), accepted {low:.1%} to {high:.1%}: "
    )
    if within:
        return True, said + "within"
    return False, said + "OUTSIDE. Look first at:\n" + "\n".join(f"- {suspect}" for suspect in SUSPECTS)
