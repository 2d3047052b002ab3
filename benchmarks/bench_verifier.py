"""The verifier beside Math-Verify alone and TRL's accuracy_reward, on labelled answers.

    make bench-verifier ARGS="--data ../shared/data/verifier"

For every file: false accepts and false rejects of each column, and items per second of one process. The others run in a
process that is killed after ten seconds an item, as they can hang for ever. Files whose responses are bare answers are
given to every column inside a box.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.grading import Grader, Verdict

BARE = ("hardverify_math",)  # responses are answers, not completions
BOXED = ("sharp_cases", "hardverify_math")  # answers are marked; elsewhere ours reads what marks none, as the others do
FILES = ("sharp_cases", "hardverify_math", "gsm8k_model_solutions", "mr_gsm8k", "math_verify_cases", "lighteval_cases")
SECONDS = 10.0
Column = Callable[[str, str], bool]


def math_verify_column(gold: str, response: str) -> bool:
    """Math-Verify's README call, with the gold as LaTeX."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(response)))


def trl_column(gold: str, response: str) -> bool:
    """TRL's reward as a GRPO recipe would call it; an item it skips is not accepted."""
    from trl.rewards import accuracy_reward

    (reward,) = accuracy_reward([[{"role": "assistant", "content": response}]], [f"${gold}$"])
    return bool(reward)


def serve(column: Column, pipe: Any) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    column("1", "\\boxed{1}")
    pipe.send(True)
    while True:
        try:
            pipe.send(column(*pipe.recv()))
        except EOFError:
            return


def run_column(column: Column, pairs: list[tuple[str, str]]) -> tuple[list[bool | None], float]:
    """Verdicts (None: not within the time) and seconds of a column in a process of its own."""
    verdicts: list[bool | None] = []
    process = pipe = None
    seconds = 0.0
    for pair in pairs:
        if process is None:
            pipe, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=serve, args=(column, theirs), daemon=True)
            process.start()
            theirs.close()
            pipe.recv()
        began = time.perf_counter()
        pipe.send(pair)
        answered = pipe.poll(SECONDS)
        verdicts.append(pipe.recv() if answered else None)
        seconds += time.perf_counter() - began
        if not answered:
            process.kill()
            process.join()
            process = None
    if process is not None:
        process.kill()
    return verdicts, seconds


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], list[bool]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrap = path.stem in BARE
    pairs = [(str(r["gold"]), f"\\boxed{{{r['response']}}}" if wrap else r["response"]) for r in rows]
    return pairs, [str(r.get("label", r.get("expected"))) in ("1", "True") for r in rows]


def score(verdicts: list[bool | None], labels: list[bool], seconds: float) -> str:
    accepts = sum(v is True and not label for v, label in zip(verdicts, labels, strict=True))
    rejects = sum(v is not True and label for v, label in zip(verdicts, labels, strict=True))
    hung = sum(v is None for v in verdicts)
    return f"{accepts:>4} / {rejects:<4} {len(labels) / seconds:>7.0f}/s" + (f" {hung} hung" if hung else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of labelled JSON lines")
    parser.add_argument("--limit", type=int, help="rows of each file")
    parser.add_argument("--list", action="store_true", help="print what posttrain decides against the label")
    arguments = parser.parse_args()
    print(f"{'false accepts / false rejects':<32}{'posttrain':<26}{'Math-Verify':<26}TRL accuracy_reward")
    for name in FILES:
        pairs, labels = (part[: arguments.limit] for part in read_pairs(arguments.data / f"{name}.jsonl"))
        golds, responses = [p[0] for p in pairs], [p[1] for p in pairs]
        with Grader(workers=1) as grader:
            grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])  # start the process
            began = time.perf_counter()
            grades = grader.grade(golds, responses, [False] * len(pairs), lenient=name not in BOXED)
            seconds = time.perf_counter() - began
        ours = [grade.verdict is Verdict.CORRECT for grade in grades]
        cells = [score(ours, labels, seconds)]
        for column in (math_verify_column, trl_column):
            verdicts, seconds = run_column(column, pairs)
            cells.append(score(verdicts, labels, seconds))
        print(f"{name + f' ({len(pairs)})':<32}" + "".join(f"{cell:<26}" for cell in cells), flush=True)
        if arguments.list:
            for (gold, _), grade, verdict, label in zip(pairs, grades, ours, labels, strict=True):
                if verdict != label:
                    print(f"    label {label}: gold {gold!r}, answer {grade.answer!r}")


if __name__ == "__main__":
    main()
