"""Checks of what answers will earn: golds that no answer could match, rewards that being right does not change."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from posttrain.data.prompts import declared_prompt
from posttrain.errors import PosttrainError
from posttrain.grading.grader import Grader, Verdict
from posttrain.methods.grpo.custom_rewards import load_rewards
from posttrain.pipelines.rehearsal.paper import Paper

GOLDS = 2000  # of a dataset, that are graded against themselves
REWARDED = 16  # rows whose right and wrong answers are scored


def check_golds(paper: Paper) -> str:
    """Raise where golds are not accepted as their own answer: whoever is right would be called wrong."""
    rows = paper.questions(GOLDS)
    golds = [row["answer"] for row in rows]
    with Grader() as grader:
        grades = grader.grade(golds, [f"\\boxed{{{gold}}}" for gold in golds], [False] * len(golds))
    unread = [row for row, grade in zip(rows, grades, strict=True) if grade.verdict != Verdict.CORRECT]
    if unread:
        raise PosttrainError(
            f"{paper.dataset}: {len(unread)} of {len(rows)} golds are not accepted as their own answer, first "
            f"{unread[0]['answer'][:60]!r} of row {unread[0]['id']}; mend the dataset"
        )
    return f"{len(rows):,} golds are accepted as their own answers"


def check_rewards(paper: Paper) -> str:
    """Raise where a right answer earns no more than none at all, so that no group could ever have a signal."""
    values, rows = paper.values, paper.questions(REWARDED)
    completions = [_right(str(values["prompt"]), row["answer"]) for row in rows] + ["I do not know."] * len(rows)
    golds, n = [row["answer"] for row in rows] * 2, 2 * len(rows)
    with Grader() as grader:
        grades = grader.grade(golds, completions, [False] * n)
    keywords = {
        "prompts": [row["prompt"][-1]["content"] for row in rows] * 2, "completions": completions, "grade": grades,
        "completion_ids": paper.tokenizer(completions, add_special_tokens=False)["input_ids"], "answer": golds,
        "id": [row["id"] for row in rows] * 2, "truncated": [False] * n, "trainer_state": None,
        "max_completion_length": [int(values["max_completion_length"])] * n,
        "log_extra": lambda *_: None, "log_metric": lambda *_: None,
    }  # fmt: skip
    functions, weights = load_rewards(values["reward_funcs"]), values.get("reward_weights")
    earned = [_now(function(**keywords)) for function in functions]
    weighted = zip(weights or [1.0] * len(functions), earned, strict=True)
    totals = [sum(parts) for parts in zip(*[[w * (r or 0.0) for r in e] for w, e in weighted], strict=True)]
    right, wrong = totals[: len(rows)], totals[len(rows) :]
    if not any(a > b for a, b in zip(right, wrong, strict=True)):
        raise PosttrainError(
            f"reward_funcs: {values['reward_funcs']}: a right answer earns {right[0]:g} and one that says nothing "
            f"{wrong[0]:g} (weights {weights or 'of 1'}): no completion would earn more for being right"
        )
    return f"a right answer earns {right[0]:g}, one that says nothing {wrong[0]:g}"


def _right(prompt: str, gold: str) -> str:
    """A right answer in the form that a prompt asks for."""
    forms: dict[str, Callable[[str], str]] = {
        "tags": lambda gold: f"So it is. </think> <answer> \\boxed{{{gold}}} </answer>",
        "hashes": lambda gold: f"So it is.\n#### {gold}",
    }
    return forms.get(declared_prompt(prompt).form, lambda gold: f"The answer is \\boxed{{{gold}}}.")(gold)


def _now(rewards: Any) -> list[float | None]:
    """Rewards of a function, or of a coroutine that computes them."""
    return asyncio.run(rewards) if inspect.iscoroutine(rewards) else rewards
