"""Verify, select and write recorded samples as a round of rejection sampling does, beside Math-Verify alone.

    make bench-rejection
    make bench-rejection ARGS="--data ../shared/data/gsm8k/train.jsonl"    # GSM8K's 7,473 solutions

Each question has candidates made from its worked solution: right, wrong, without an answer, cut off, and in another
form. Sampling is left out. Peak memory is that of this process.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from posttrain.data.records import read_json_lines
from posttrain.data.rows import row_id
from posttrain.generation.sample import Sample
from posttrain.grading.grader import Grader
from posttrain.pipelines.candidates import Rule, write_selection
from posttrain.pipelines.rollouts import Question, RolloutFile, verify

MATH_VERIFY_SAMPLES = 400  # it takes milliseconds each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="JSON lines with question and answer; generated where it is not given"
    )
    parser.add_argument("--questions", type=int, default=7473)
    parser.add_argument("--candidates", type=int, default=8)
    arguments = parser.parse_args()
    solutions = read_solutions(arguments.data, arguments.questions)
    began = time.perf_counter()
    memory = []
    with tempfile.TemporaryDirectory() as name, Grader() as grader:
        file, questions = RolloutFile(Path(name) / "rollouts", {}), []
        for number, (text, reasoning, gold) in enumerate(solutions):
            question = Question(row_id(text), [{"role": "user", "content": text}], gold)
            file.keep(verify(question, candidates(reasoning, gold, arguments.candidates), grader))
            questions.append(question)
            if number in (len(solutions) // 4, len(solutions) - 1):
                memory.append(peak_megabytes())
        verified = time.perf_counter()
        metrics = file.finish(questions)
        counts = write_selection([file.directory], Rule(select="all_correct", max_per_question=4), Path(name) / "data")
        memory.append(peak_megabytes())
    ended, n = time.perf_counter(), metrics["candidates"]
    parts = f"verify {verified - began:.1f} s, select and write {ended - verified:.1f} s"
    alone = math_verify_seconds(solutions, arguments.candidates) * n
    print(f"{n} samples of {len(solutions)} questions; verdicts {metrics['counts']}, kept {counts['kept']['train']}")
    print(f"{parts}, {n / (ended - began):.0f} samples/s")
    print(f"peak memory: {memory[0]} MB after a quarter, {memory[1]} MB verified, {memory[2]} MB written")
    print(f"Math-Verify alone: {n / alone:.0f} samples/s; ratio {alone / (ended - began):.1f}")


def read_solutions(path: Path | None, n: int) -> list[tuple[str, str, str]]:
    """(question, reasoning, gold) triples."""
    if path is None:
        return [(f"What is {i} times 7?", f"{i} times 7 is {7 * i}.\n" * 4, str(7 * i)) for i in range(n)]
    records = read_json_lines(path)[:n]
    parts = [(record["question"], *record["answer"].rpartition("####")[::2]) for record in records]
    return [(question, reasoning, gold.strip().replace(",", "")) for question, reasoning, gold in parts]


def candidates(reasoning: str, gold: str, n: int) -> list[Sample]:
    """Recorded samples: half of them right, in two forms; the rest wrong, without an answer, or cut off."""
    kinds = (
        f"\\boxed{{{gold}}}", f"\\boxed{{{gold}1}}", "I do not know.", f"#### {gold}", f"\\boxed{{{gold}.0}}",
        f"\\boxed{{{gold}", f"\\boxed{{-{gold}}}", f"The answer is \\boxed{{\\frac{{{gold}}}{{1}}}}.",
    )  # fmt: skip
    texts = [f"{reasoning}{kinds[i % len(kinds)]}" for i in range(n)]
    return [Sample(i, text, 100, "length" if i % len(kinds) == 5 else "stop") for i, text in enumerate(texts)]


def math_verify_seconds(solutions: list[tuple[str, str, str]], n: int) -> float:
    """Seconds a sample of Math-Verify's README call on the same candidates."""
    from math_verify import parse, verify

    pairs = [(gold, s.text) for _, reasoning, gold in solutions for s in candidates(reasoning, gold, n)]
    chosen = pairs[:: max(1, len(pairs) // MATH_VERIFY_SAMPLES)]
    parse("$1$"), verify(parse("$1$"), parse("$1$"))  # imports
    began = time.perf_counter()
    for gold, text in chosen:
        verify(parse(f"${gold}$"), parse(text))
    return (time.perf_counter() - began) / len(chosen)


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
