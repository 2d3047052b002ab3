"""Compare the reward path with TRL's accuracy_reward on real traces, and measure what hostile completions cost it.

    make bench-reward ARGS="--traces ../shared/data/traces/mip_traces.jsonl"

Both grade the same completions as a GRPO step hands them over; ours with as many processes as there are cores, TRL's in
the process that trains, as its trainer calls it. Printed: completions per second of wall time and their ratio, in
interleaved rounds, and the seconds our path takes when every 64th completion is hostile.
"""

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path

from posttrain.data.records import read_json_lines
from posttrain.grading.grader import Grader
from posttrain.methods.grpo.custom_rewards import load_reward

CHARACTERS = 8000  # about 2,000 tokens; of longer traces the end is kept, which holds the answer
HOSTILE = (
    "\\boxed{9^{9^{9^{9}}}}", "\\boxed{" + "(" * 5000 + "}", "\\boxed{" + "{" * 9000, "\\boxed{\\int_0^1 x^{x^{x}} dx}",
    "\\boxed{x^{999999999}!}", "\\boxed{\\sum_{k=1}^{10^{12}} \\frac{1}{k}}",
)  # fmt: skip


def ours(golds: list[str], completions: list[str], grader: Grader) -> tuple[list[float | None], float]:
    """Rewards and seconds."""
    began = time.perf_counter()
    grades = grader.grade(golds, completions, [False] * len(completions))
    rewards = load_reward("accuracy")(grade=grades)
    return rewards, time.perf_counter() - began


def theirs(golds: list[str], completions: list[str]) -> tuple[list[float | None], float]:
    """TRL's rewards and seconds."""
    from trl.rewards import accuracy_reward

    messages = [[{"role": "assistant", "content": text}] for text in completions]
    began = time.perf_counter()
    rewards = accuracy_reward(messages, [f"${gold}$" for gold in golds])
    return rewards, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="JSON lines with `gold` and `response`")
    parser.add_argument("--completions", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.traces is None:
        sys.exit("error: needs traces, JSON lines with `gold` and `response`: make bench-reward ARGS='--traces FILE'")
    logging.disable(logging.CRITICAL)
    rows = read_json_lines(arguments.traces)
    rows = [row for row in rows if row["gold"]]
    rows = [rows[i % len(rows)] for i in range(arguments.completions)]
    golds = [str(row["gold"]) for row in rows]
    completions = [row["response"][-CHARACTERS:] for row in rows]
    theirs(golds[:8], completions[:8])  # imports
    ratios = []
    for number in range(arguments.rounds):
        with Grader() as grader:  # a new one each round, as it remembers verdicts
            grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])
            rewards, seconds = ours(golds, completions, grader)
        other, other_seconds = theirs(golds, completions)
        ratios.append(other_seconds / seconds)
        agree = sum(a == b for a, b in zip(rewards, other, strict=True))
        n = len(rewards)
        rates = f"posttrain {n / seconds:.0f}/s, TRL {n / other_seconds:.0f}/s"
        print(f"round {number + 1}: {rates}, ratio {ratios[-1]:.1f}, equal rewards {agree}/{n}", flush=True)
    print(f"median ratio {statistics.median(ratios):.1f}")
    mixed = [HOSTILE[i // 64 % len(HOSTILE)] if i % 64 == 0 else text for i, text in enumerate(completions)]
    with Grader() as grader:
        grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])
        rewards, seconds = ours(golds, mixed, grader)
        undecided = sum(reward is None for reward in rewards)
    print(f"with {len(mixed) // 64} hostile completions: {seconds:.1f} s, {undecided} undecided, none hung")


if __name__ == "__main__":
    main()
