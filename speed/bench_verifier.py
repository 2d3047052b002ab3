"""Compare the verifier with Math-Verify alone, TRL's accuracy_reward and the graders of published numbers.

    make bench-verifier ARGS="--data ../shared/data"

Labelled answers (`verifier/` below --data): false accepts and false rejects of each column as a Markdown table, and
every answer that ours decides against its label; rows with a doubtful label (`suspect`, `contested`) are left out. The
others run in a process that is killed after ten seconds an item, as they can hang for ever. Files whose responses are
bare answers are given to every column inside a box. Pairs from the test suites of others (`peer_pairs`) stand on lines
of their own: theirs, and those written for this project; ours reads leniently only what marks no answer.

Speed (GSM8K, MATH-500, AIME24 and AMC23 below --data): ours in one process beside Math-Verify in another, on the same
items, one at a time; then a whole default evaluation.
"""

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.records import read_json_lines
from posttrain.evaluation.published_graders import make_grader
from posttrain.grading.grader import Grade, Grader, Verdict
from posttrain.grading.values.exact import equal

BARE = ("hardverify_math",)  # responses are answers, not completions
BOXED = (
    "sharp_cases",
    "hardverify_math",
    "peer_pairs",
)  # answers are marked; elsewhere ours reads what marks none, as the others do
FILES = ("sharp_cases", "hardverify_math", "gsm8k_model_solutions", "mr_gsm8k", "math_verify_cases", "lighteval_cases",
         "peer_pairs")  # fmt: skip
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


@dataclass(frozen=True)
class Labelled:
    """A set of golds and responses: whether each is right, and whether ours may read what marks no answer."""

    name: str
    pairs: list[tuple[str, str]]
    labels: list[bool]
    lenient: list[bool]


def read_sets(directory: Path, limit: int | None) -> Iterator[Labelled]:
    for name in FILES:
        rows = read_json_lines(directory / f"{name}.jsonl")
        rows = [row for row in rows if "suspect" not in row and not row.get("contested")]
        parts = {name: rows}
        if name == "peer_pairs":
            own = [row for row in rows if "(own)" in row["suite"]]
            parts = {"peers' own tests": [row for row in rows if row not in own], "pairs written for this project": own}
        for part, chosen in parts.items():
            chosen = chosen[:limit]
            yield Labelled(
                f"{part} ({len(chosen)})",
                [(str(r["gold"]), f"\\boxed{{{r['response']}}}" if name in BARE else r["response"]) for r in chosen],
                [str(r.get("label", r.get("expected"))) in ("1", "True") for r in chosen],
                [r.get("unmarked", name not in BOXED) for r in chosen],
            )


def run_grader(grader: Grader, pairs: list[tuple[str, str]], lenient: list[bool]) -> tuple[list[Grade], float]:
    """Grades and seconds, once the processes have started."""
    grades: dict[int, Grade] = {}
    with grader:
        grader.grade(["\\sqrt{2}"], ["\\boxed{\\sqrt{3}}"], [False])
        began = time.perf_counter()
        for way in (False, True):
            chosen = [i for i, leniently in enumerate(lenient) if leniently is way]
            golds, responses = [pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]
            grades |= dict(zip(chosen, grader.grade(golds, responses, [False] * len(chosen), way), strict=True))
        seconds = time.perf_counter() - began
    return [grades[i] for i in range(len(pairs))], seconds


def score(verdicts: list[bool | None], labels: list[bool]) -> str:
    accepts = sum(v is True and not label for v, label in zip(verdicts, labels, strict=True))
    rejects = sum(v is not True and label for v, label in zip(verdicts, labels, strict=True))
    hung = sum(v is None for v in verdicts)
    return f"{accepts} / {rejects}" + (f", {hung} hung" if hung else "")


def compare_on_labels(directory: Path, limit: int | None) -> None:
    columns = ("posttrain", "Math-Verify", "TRL accuracy_reward", "`--grader qwen`", "`--grader drgrpo`")
    print(f"| false accepts / false rejects | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    missed = []
    for labelled in read_sets(directory, limit):
        pairs, labels = labelled.pairs, labelled.labels
        grades, _ = run_grader(Grader(workers=1), pairs, labelled.lenient)
        ours: list[bool | None] = [grade.verdict is Verdict.CORRECT for grade in grades]
        cells = [score(ours, labels)]
        cells += [score(run_column(column, pairs)[0], labels) for column in (math_verify_column, trl_column)]
        for published in ("qwen", "drgrpo"):
            theirs, _ = run_grader(make_grader(published, "box", workers=1), pairs, [False] * len(pairs))
            verdicts = [None if g.verdict is Verdict.TIMEOUT else g.verdict is Verdict.CORRECT for g in theirs]
            cells.append(score(verdicts, labels))
        print(f"| {labelled.name} | {' | '.join(cells)} |", flush=True)
        for (gold, _), grade, verdict, label in zip(pairs, grades, ours, labels, strict=True):
            if verdict != label:
                missed.append(f"label {label}: gold {gold[-80:]!r}, answer {(grade.answer or '')[-80:]!r}")
    print("\nOurs against the label:\n  " + "\n  ".join(missed))


def read_golds(path: Path) -> list[str]:
    answers = [str(record["answer"]) for record in read_json_lines(path)]
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
    _, seconds_whole = run_grader(Grader(workers=4), pairs, [False] * len(pairs))
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
