"""Compare the verifier with Math-Verify alone, TRL's accuracy_reward and the graders of published numbers.

    make bench-verifier ARGS="--data ../shared/data"

Labelled answers (`verifier/` below --data): false accepts and false rejects of each column, items per second of one
process, and every answer that ours decides against its label; rows with a doubtful label (`suspect`) are left out. The
others run in a process that is killed after ten seconds an item, as they can hang for ever. Files whose responses are
bare answers are given to every column inside a box.

Speed (GSM8K, MATH-500, AIME24 and AMC23 below --data): ours in one process beside Math-Verify in another, on the same
items, one at a time; then a whole default evaluation.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.evaluation.published_graders import make_grader
from posttrain.grading.grader import Grade, Grader, Verdict
from posttrain.grading.values.exact import equal

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
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if "suspect" not in row]
    wrap = path.stem in BARE
    pairs = [(str(r["gold"]), f"\\boxed{{{r['response']}}}" if wrap else r["response"]) for r in rows]
    return pairs, [str(r.get("label", r.get("expected"))) in ("1", "True") for r in rows]


def run_grader(grader: Grader, pairs: list[tuple[str, str]], lenient: bool) -> tuple[list[Grade], float]:
    """Grades and seconds, once the processes have started."""
    golds, responses = [p[0] for p in pairs], [p[1] for p in pairs]
    with grader:
        grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])
        began = time.perf_counter()
        grades = grader.grade(golds, responses, [False] * len(pairs), lenient)
        return grades, time.perf_counter() - began


def score(verdicts: list[bool | None], labels: list[bool], seconds: float) -> str:
    accepts = sum(v is True and not label for v, label in zip(verdicts, labels, strict=True))
    rejects = sum(v is not True and label for v, label in zip(verdicts, labels, strict=True))
    hung = sum(v is None for v in verdicts)
    return f"{accepts:>4} / {rejects:<4} {len(labels) / seconds:>6.0f}/s" + (f" {hung} hung" if hung else "")


def compare_on_labels(directory: Path, limit: int | None) -> None:
    columns = ("posttrain", "Math-Verify", "TRL accuracy_reward", "--grader qwen", "--grader drgrpo")
    print(f"{'false accepts / false rejects':<32}" + "".join(f"{name:<24}" for name in columns))
    for name in FILES:
        pairs, labels = (part[:limit] for part in read_pairs(directory / f"{name}.jsonl"))
        grades, seconds = run_grader(Grader(workers=1), pairs, lenient=name not in BOXED)
        ours: list[bool | None] = [grade.verdict is Verdict.CORRECT for grade in grades]
        cells = [score(ours, labels, seconds)]
        for column in (math_verify_column, trl_column):
            verdicts, seconds = run_column(column, pairs)
            cells.append(score(verdicts, labels, seconds))
        for published in ("qwen", "drgrpo"):
            theirs, seconds = run_grader(make_grader(published, "box", workers=1), pairs, lenient=False)
            verdicts = [None if g.verdict is Verdict.TIMEOUT else g.verdict is Verdict.CORRECT for g in theirs]
            cells.append(score(verdicts, labels, seconds))
        print(f"{name + f' ({len(pairs)})':<32}" + "".join(f"{cell:<24}" for cell in cells), flush=True)
        for (gold, _), grade, verdict, label in zip(pairs, grades, ours, labels, strict=True):
            if verdict != label:
                print(f"    label {label}: gold {gold[-80:]!r}, answer {(grade.answer or '')[-80:]!r}")


def read_golds(path: Path) -> list[str]:
    answers = [str(json.loads(line)["answer"]) for line in path.read_text().splitlines()]
    return [answer.rpartition("####")[2].strip() for answer in answers]


def half_right(golds: list[str], before: str = "") -> list[tuple[str, str]]:
    """Each gold with itself and with the next one's, in turn, behind some text."""
    return [(gold, f"{before}\\boxed{{{golds[(i + i % 2) % len(golds)]}}}") for i, gold in enumerate(golds)]


def compare_speed(data: Path, limit: int) -> None:
    exact = read_golds(data / "gsm8k/test.jsonl") + read_golds(data / "aime24/test.jsonl")
    mathematics = read_golds(data / "math/math500.jsonl")
    text = "Then we add 3 to both sides and see what is left of it. " * (8192 // 14)
    rows = itertools.pairwise(mathematics)
    algebra = [(a, f"\\boxed{{{b}}}") for a, b in rows if equal(a, b) is None]
    sets = {
        "GSM8K and AIME24, half right": half_right(exact),
        "MATH-500, half right, behind 8k tokens": half_right(mathematics, text),
        "wrong, algebra needed for each": algebra,
    }
    print(f"\n{'one process':<44}{'posttrain':<36}{'Math-Verify':<14}ratio")
    for name, pairs in sets.items():
        with Grader(workers=1) as grader:
            grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])
            seconds = [timed(grader, *pair) for pair in pairs]
        few = pairs[:: max(1, len(pairs) // limit)]
        theirs = len(few) / run_column(math_verify_column, few)[1]
        ours, p99 = len(pairs) / sum(seconds), sorted(seconds)[int(0.99 * len(seconds))]
        cell = f"{ours:.0f}/s, p99 {p99 * 1000:.0f} ms, max {max(seconds) * 1000:.0f} ms"
        print(f"{f'{name} ({len(pairs)})':<44}{cell:<36}{f'{theirs:.0f}/s':<14}{ours / theirs:.1f}", flush=True)
    small = read_golds(data / "amc23/test.jsonl") + 2 * read_golds(data / "aime24/test.jsonl")
    pairs = half_right(read_golds(data / "gsm8k/test.jsonl"), text) + half_right(mathematics, text)
    pairs += 16 * half_right(small, text)
    _, seconds_whole = run_grader(Grader(workers=4), pairs, lenient=False)
    print(f"a default evaluation, {len(pairs)} samples of 8k tokens, 4 workers: {seconds_whole:.1f} s")


def timed(grader: Grader, gold: str, response: str) -> float:
    began = time.perf_counter()
    grader.grade([gold], [response], [False])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with verifier/, gsm8k/, math/, …")
    parser.add_argument("--limit", type=int, help="labelled rows of each file")
    parser.add_argument("--only", choices=["labels", "speed"], help="one of the two parts")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit("error: needs a directory with verifier/, gsm8k/, math/: make bench-verifier ARGS='--data DIRECTORY'")
    if arguments.only != "speed":
        compare_on_labels(arguments.data / "verifier", arguments.limit)
    if arguments.only != "labels":
        compare_speed(arguments.data, limit=200)


if __name__ == "__main__":
    main()
