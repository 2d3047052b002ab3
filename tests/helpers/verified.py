"""Verified answers for tests of trainers that learn from them: gold solutions against altered ones."""

import re
from pathlib import Path
from typing import Any

from posttrain.data.rows import by_content, read_parquet
from posttrain.pipelines.preference_data import write_outcomes, write_pairs
from posttrain.pipelines.rollouts import Candidate, Rollout


def answers(row: dict[str, Any]) -> Rollout:
    """The gold solution, and the same with another number in the box."""
    text = row["completion"][-1]["content"]
    wrong = re.sub(r"boxed\{.*?\}", lambda _: f"boxed{{{int(row['answer']) + 7}}}", text)
    verdicts = ((text, row["answer"], "correct"), (wrong, None, "wrong"))
    return Rollout(row["id"], row["prompt"], row["answer"], [Candidate(t, 9, "stop", a, v) for t, a, v in verdicts])


def write_verified(directory: Path, tiny_data: Path) -> None:
    """Pairs and outcomes: of 400 questions (`all`, `pairs`), and of 24 (`few`, `few_pairs`, `few_outcomes`)."""
    rows = by_content(read_parquet(tiny_data / "tiny_math/train.parquet"), 400)
    for name, n in (("all", len(rows)), ("few", 24)):
        (directory / name).mkdir()
        (directory / name / "rollouts.jsonl").write_text("".join(answers(row).to_line() for row in rows[:n]))
        (directory / name / "metrics.json").write_text("{}")
    write_pairs([directory / "all"], directory / "pairs", 100, None)
    write_pairs([directory / "few"], directory / "few_pairs", 0, None)
    write_outcomes([directory / "few"], directory / "few_outcomes", 0)
    (directory / "tiny_math").symlink_to(tiny_data / "tiny_math")
