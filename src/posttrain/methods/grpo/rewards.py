"""Reward functions by name. Each reads the verdict of the one grader.

Each has TRL's signature: keyword lists with one entry per completion, of which it takes what it needs, and a list of
rewards back, None where a completion cannot be judged. Beside TRL's own keywords (`prompts`, `completions`,
`completion_ids` and the columns of the row) there are `grade` (posttrain.grading.grader.Grade), `truncated` and
`max_completion_length`.
"""

import math
from collections.abc import Callable
from typing import Any

from posttrain.grading.formats import in_form, in_published_form
from posttrain.grading.grader import Grade, Verdict

Reward = Callable[..., list[float | None]]
UNDECIDED = (Verdict.TIMEOUT, Verdict.ERROR)


def accuracy(grade: list[Grade], **_: Any) -> list[float | None]:
    """1 for a correct answer, 0 for any other, None where the verifier could not decide."""
    return [None if g.verdict in UNDECIDED else float(g.verdict == Verdict.CORRECT) for g in grade]


def boxed_format(completions: list[str], **_: Any) -> list[float | None]:
    """1 where the last `\\boxed{}` is complete."""
    return [float(in_form("box", text)) for text in completions]


def r1_zero_format(completions: list[str], **_: Any) -> list[float | None]:
    """1 for `</think> <answer>` with exactly one space and a closing `</answer>` (CS336's strict form)."""
    return [float(in_published_form("tags", text)) for text in completions]


def r1_zero_format_lenient(completions: list[str], **_: Any) -> list[float | None]:
    """As `r1_zero_format`, with any blanks between the two tags, and nothing after the answer."""
    return [float(in_form("tags", text)) for text in completions]


def r1_zero(completions: list[str], grade: list[Grade], **_: Any) -> list[float | None]:
    """1 for a correct answer in the strict r1_zero form; format alone earns nothing, so it cannot be hacked."""
    pairs = zip(accuracy(grade), r1_zero_format(completions), strict=True)
    return [None if right is None else right * formed for right, formed in pairs]


def cosine_length(
    grade: list[Grade], completion_ids: list[list[int]], max_completion_length: list[int], **_: Any
) -> list[float | None]:
    """From 1 to 0.5 for ever longer right answers, from -1 to -0.5 for wrong ones (Yeo et al. 2025, appendix C.1).

    The curve is that of TRL's get_cosine_scaled_reward, which would verify with a grader of its own.
    """
    rewards: list[float | None] = []
    for right, ids, budget in zip(accuracy(grade), completion_ids, max_completion_length, strict=True):
        share = min(len(ids) / budget, 1.0)
        size = 0.75 + 0.25 * math.cos(math.pi * share)
        rewards.append(None if right is None else size if right else -size)
    return rewards


def soft_overlong(completion_ids: list[list[int]], max_completion_length: list[int], **_: Any) -> list[float | None]:
    """0, falling to -1 over the last fifth of the budget (DAPO, equation 13; by TRL)."""
    from trl.rewards import get_soft_overlong_punishment

    budget = max_completion_length[0]
    return get_soft_overlong_punishment(budget, budget // 5)(completion_ids=completion_ids)


def repetition(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """0, falling to -1 with the share of repeated 3-grams of tokens (Yeo et al. 2025, appendix C.2; by TRL)."""
    from trl.rewards import get_repetition_penalty_reward

    return get_repetition_penalty_reward()(completion_ids=completion_ids)


FUNCTIONS: dict[str, Reward] = {
    function.__name__: function
    for function in (
        accuracy, boxed_format, r1_zero_format, r1_zero_format_lenient, r1_zero,
        cosine_length, soft_overlong, repetition,
    )
}  # fmt: skip
