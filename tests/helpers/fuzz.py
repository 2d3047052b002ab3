"""Fuzz every reader of what others wrote, guided by the branches that it takes: `make fuzz ARGS="--minutes 30"`.

A target is a reader and sound examples of what it reads; each has a process of its own (atheris, libFuzzer for Python)
for its share of the time. A reader may refuse with a PosttrainError of one line. A traceback, 20 seconds, or 4 GB is a
finding: its input stays in .fuzz/<target>/, and `--target NAME --input FILE` reads it again. What was found to be new
stays there as well, so that the next run begins with it.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CORPUS = REPOSITORY / ".fuzz"
LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-max_len=4096", "-print_final_stats=1", "-verbosity=0")
ODD = (None, True, -1, 10**30, 0.5, "", "\ud800", "$x$", "../..", "9" * 400, [], {}, [[]], {"": None})
Target = tuple[Callable[[], list[bytes]], Callable[[bytes], None]]  # sound examples, and the reader


def file_targets(place: Path) -> dict[str, Target]:
    """Files of ours that are read back."""
    import test_fuzz_files as files

    from posttrain import digests
    from posttrain.errors import PosttrainError, printable

    def target(name: str) -> Target:
        relative, good, write, read = files.TARGETS[name]
        path = place / name / relative

        def run(content: bytes) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if relative.startswith("e/"):
                (path.parent / digests.MARK).unlink(missing_ok=True)
                files.evaluation(path.parent)
            path.write_bytes(content)
            try:
                read(path)
            except PosttrainError as error:
                said = printable(str(error).replace("\n       ", ""))  # a recipe's faults are a line each
                assert len(said) < 20_000 and "\n" not in said, said[:300]

        return lambda: [write(good)], run

    return {name: target(name) for name in files.TARGETS}


def row_targets(place: Path) -> dict[str, Target]:
    """Files of rows, in every format and compression, and what is made of each row."""
    import test_trace_formats as formats

    from posttrain.data.records import SourceError
    from posttrain.data.traces.formats import read_items
    from posttrain.data.traces.messages import ShapeError
    from posttrain.data.traces.shapes import Shape, read_trace
    from posttrain.errors import printable

    def read(line: bytes) -> None:
        for shape in (Shape(), Shape(gold_column="a.b", rate_column="rate")):
            try:
                read_trace(line, shape)
            except ShapeError as error:
                printable(str(error)).encode()

    def target(name: str) -> Target:
        def run(content: bytes) -> None:
            path = place / name
            path.write_bytes(content)
            try:
                for _, line in read_items(path, 4096):
                    if isinstance(line, bytes):
                        read(line)
            except SourceError as error:
                assert "\n" not in str(error)

        return lambda: [formats.VALID[name]()], run

    talk = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "gold": {"a": 3}}
    rows = [json.dumps(row).encode() for row in (formats.ROW, talk)]
    return {"rows": (lambda: rows, read), **{name: target(name) for name in formats.VALID}}


def question_targets(place: Path) -> dict[str, Target]:
    """Questions and facts of a memory, and rows of scripts that prepare a named dataset."""
    from posttrain.data.records import read_json_lines
    from posttrain.errors import PosttrainError
    from posttrain.memory.bank.cache import read_facts
    from posttrain.memory.bank.questions import read_questions

    asked = {"question": "Where?", "correct_answer": "London", "options": "A: London B: Paris", "uuid": "u"}
    item = {"target": [{"sentence": "Ada was born in London.", "object": "London", **asked}]}
    talk = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "London"}]}
    readers = {
        "facts.json": (read_facts, [item]), "questions.json": (read_questions, [item]),
        "questions.jsonl": (read_questions, talk), "records.jsonl": (read_json_lines, asked),
    }  # fmt: skip

    def target(name: str) -> Target:
        read, good = readers[name]

        def run(content: bytes) -> None:
            (place / name).write_bytes(content)
            try:
                list(read(place / name))
            except PosttrainError as error:
                assert "\n" not in str(error)

        return lambda: [json.dumps(good).encode() + b"\n"], run

    return {name: target(name) for name in readers}


def verifier_targets() -> dict[str, Target]:
    """What a model wrote: reading its answer, and the comparison that runs in the trainer's own process."""
    from hostile import HOSTILE

    from posttrain.errors import PosttrainError
    from posttrain.grading.formats import in_form, in_published_form
    from posttrain.grading.reading.extract import extract_answer, has_closed_answer
    from posttrain.grading.reading.golds import read_gold
    from posttrain.grading.values.exact import equal, explain

    said = [text.encode(errors="replace")[:2000] for text in HOSTILE]
    said += [b"The answer is \\boxed{\\frac{1}{2}}.", b"<answer>x = 3 or 4</answer>", b"#### 1,234 km", b"so 12:30 pm."]

    def read(content: bytes) -> None:
        text = content.decode(errors="replace")
        for lenient in (False, True):
            answer = extract_answer(text, lenient)
            assert answer is None or isinstance(answer, str)
        has_closed_answer(text)
        for form in ("box", "tags", "hashes", "sentence"):
            in_form(form, text), in_published_form(form, text)

    def compare(content: bytes) -> None:
        gold, _, answer = content.decode(errors="replace").partition("\n")
        try:
            gold = read_gold(gold) if gold.strip() else ""
        except PosttrainError:
            return
        assert equal(gold, answer) in (True, False, None)
        explain(gold, answer)

    pairs = [b"1/2\n\\frac{1}{2}", b"(1, 2]\n(1,2]", b"5 km\n5000 m", b"\\{1,2\\}\n2, 1", b"x=3\n3", b"B\n(B)"]
    return {"reading": (lambda: said, read), "comparing": (lambda: pairs, compare)}


def place() -> Path:
    """A directory in memory where there is one: the readers' own files are synced to disk."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="posttrain-fuzz-", dir=memory if memory.is_dir() else None))


def targets(place: Path) -> dict[str, Target]:
    return {**verifier_targets(), **row_targets(place), **question_targets(place), **file_targets(place)}


def structural(fuzzer: Any, data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the changes are to bytes, half to a value inside JSON, which changed bytes rarely leave whole."""
    from test_fuzz_files import changed

    choose = random.Random(seed)
    try:
        value = json.loads(data) if choose.random() < 0.5 else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return fuzzer.Mutate(data, max_size)
    odd = choose.choice((*ODD, value))
    return json.dumps(changed(value, odd, choose)).encode()[:max_size]


def fuzz(name: str, target: Target, seconds: int) -> None:
    """Fuzz one target in this process, which ends it."""
    import atheris

    seeds, run = target
    corpus = CORPUS / name.replace(" ", "_")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-", *LIMITS]
    mutate = lambda data, size, seed: structural(atheris, data, size, seed)  # noqa: E731
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_all(wanted: list[str], minutes: float) -> int:
    """Fuzz targets, each in a fork for its share of the time; the number of those with a finding."""
    import atheris

    with atheris.instrument_imports(include=["posttrain"]):
        known = targets(place())
    names, found = wanted or list(known), 0
    for name in names:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 2)
                fuzz(name, known[name], round(60 * minutes / len(names)))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
        runs = next((line.split()[-1] for line in lines if line.startswith("stat::number_of_executed_units")), "0")
        print(f"{name}: {runs} inputs{', a finding:' if code else ''}", flush=True)
        if code:
            found += 1
            print("\n".join(lines[-40:]), flush=True)
    print(f"{found} of {len(names)} targets have a finding; inputs are below {CORPUS}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="for all targets together")
    parser.add_argument("--target", nargs="+", default=[], help="these alone")
    parser.add_argument("--input", type=Path, help="read one input of the target again instead")
    asked = parser.parse_args()
    sys.path[:0] = [str(REPOSITORY / part) for part in ("src", "tests", "tests/helpers", "tests/data")]
    os.chdir(REPOSITORY)
    os.environ["POSTTRAIN_ACCELERATE_CONFIG"] = "accelerate_configs/cpu.yaml"
    if asked.input:
        targets(place())[asked.target[0]][1](asked.input.read_bytes())
    else:
        sys.exit(bool(fuzz_all(asked.target, asked.minutes)))


if __name__ == "__main__":
    main()
