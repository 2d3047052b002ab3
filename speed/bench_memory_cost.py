"""Measure what a memory costs its model where no fact is asked for, and what it costs to read one.

    make bench-memory_cost ARGS="outputs/…/final --questions data/trex_world/new_subjects.json --out cost.json"

Of one memory, frozen model beside model with memory, batch by batch: greedy accuracy on GSM8K, graded as in every
evaluation; the loss of GSM8K's solutions for a token, and how many of both prompts a row is read for; wall seconds of
running a prompt and of each pass that generates, on GSM8K and on questions about facts, as medians over batches.
"""

import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from posttrain import jsonl
from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.encode import IGNORED, encode_rows
from posttrain.data.manifest import check_dataset, split_path
from posttrain.data.rows import by_content, read_parquet
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.evaluation.settings import ask
from posttrain.grading.grader import Grader, Verdict
from posttrain.hardware import machine_facts
from posttrain.memory.bank.questions import read_questions
from posttrain.memory.by_token.router import NONE
from posttrain.memory.evaluation import PIECE, rate
from posttrain.memory.inference import Reader, open_reader
from posttrain.memory.trainer import answer_starts
from posttrain.models.labelled_head import labelled_only, targets
from posttrain.models.loading import read_checkpoint
from posttrain.recipe.sampling_options import EvalOptions

SIDES = ("without", "with")


@dataclass
class Answers:
    """Greedy answers of one side: ids with their end token; of each batch the wall seconds of running its prompts and
    of generating, and the tokens a generated row has with padding, which is how often the model ran.
    """

    ids: list[list[int]] = field(default_factory=list)
    prompt_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)


def main() -> None:
    asked = parse_arguments()
    reader = open_reader(asked.memory, asked.model, asked.cache, asked.keys)
    print(machine_facts(reader.model), flush=True)
    found = {
        "settings": {name: str(value) for name, value in vars(asked).items()},
        "loss": loss_of_solutions(reader, asked),
        "gsm8k": accuracy_on_gsm8k(reader, asked),
        "facts": seconds_on_facts(reader, asked),
    }
    if asked.out:
        jsonl.write_sealed(asked.out, found)


def loss_of_solutions(reader: Reader, asked: Any) -> dict[str, Any]:
    """Cross entropy a token of GSM8K's own solutions, each after its question."""
    rows = read_parquet(split_path(asked.data_dir / "gsm8k", check_dataset(asked.data_dir / "gsm8k"), "train"))
    ids, labels = encode_rows(by_content(rows, asked.limit), reader.tokenizer, reader.encoding)
    sums, read = dict.fromkeys(SIDES, 0.0), 0
    for start in range(0, len(ids), asked.batch_size):
        batch = ids[start : start + asked.batch_size], labels[start : start + asked.batch_size]
        for side in SIDES:
            with side_of(reader, side):
                sums[side] += loss(reader, *batch)
        read += sum(rows_read(reader))
    tokens = sum(label != IGNORED for one in labels for label in one)
    losses = {side: total / tokens for side, total in sums.items()}
    print(f"loss of {tokens:,} tokens of {len(ids)} solutions: {losses}; a row is read for {read}", flush=True)
    return {"n": len(ids), "tokens": tokens, "read": read, **losses}


@torch.inference_mode()
def loss(reader: Reader, ids: list[list[int]], labels: list[list[int]]) -> float:
    """Summed cross entropy of the labelled tokens."""
    padded = pad_sequence([torch.tensor(one) for one in ids], batch_first=True)
    wanted = pad_sequence([torch.tensor(one) for one in labels], batch_first=True, padding_value=IGNORED)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(one) for one in ids])[:, None]
    reader.memory.starts = answer_starts(wanted, mask)
    with labelled_only(reader.model, wanted):
        logits = reader.model(input_ids=padded, attention_mask=mask.long(), use_cache=False).logits
    reader.memory.starts = None
    pieces = zip(logits.split(PIECE), targets(wanted).split(PIECE), strict=True)
    return sum(F.cross_entropy(piece.float(), gold, reduction="sum").item() for piece, gold in pieces)


def accuracy_on_gsm8k(reader: Reader, asked: Any) -> dict[str, Any]:
    """Greedy accuracy on questions of GSM8K, and seconds a token of their answers."""
    name = asked.model or reader.description["model"]
    options = EvalOptions(
        trainer="eval", model=name, benchmarks="gsm8k", prompt=reader.description["prompt"],
        max_new_tokens=asked.max_new_tokens, seed=0,
    )  # fmt: skip
    (gsm8k,) = ask(load_benchmarks("gsm8k", asked.data_dir, asked.limit), options, read_checkpoint(name))
    answers = answer(reader, gsm8k.ids, asked.batch_size, asked.max_new_tokens)
    golds, found = [row["answer"] for row in gsm8k.benchmark.rows], speed(answers)
    with Grader() as grader:
        for side, given in answers.items():
            texts = reader.tokenizer.batch_decode(given.ids, skip_special_tokens=True)
            cut = [ids[-1] != reader.tokenizer.eos_token_id for ids in given.ids]
            grades = grader.grade(golds, texts, cut)
            found[side]["correct"] = rate([grade.verdict == Verdict.CORRECT for grade in grades])
    print(f"GSM8K, {len(golds)} questions: {found}", flush=True)
    return found


def seconds_on_facts(reader: Reader, asked: Any) -> dict[str, Any]:
    """Seconds a token of answers to questions about facts, most of which read a row."""
    questions = sorted(read_questions(asked.questions), key=lambda question: question.id)[: asked.limit]
    prompts = [reader.prompt_ids(question.content) for question in questions]
    found = speed(answer(reader, prompts, asked.batch_size, 10))
    print(f"facts, {len(questions)} questions: {found}", flush=True)
    return found


def answer(reader: Reader, prompts: list[list[int]], batch_size: int, max_new_tokens: int) -> dict[str, Answers]:
    """Greedy answers of both sides, each batch by one right after the other; the first is also run once before."""
    sides = {side: Answers() for side in SIDES}
    reader.answer_ids(prompts[:batch_size], 2)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        for side, given in sides.items():
            with side_of(reader, side):
                began = time.perf_counter()
                begun = reader.begin(batch)
                given.prompt_seconds.append(time.perf_counter() - began)
                if side == "with":
                    given.read += rows_read(reader)
                began = time.perf_counter()
                ids = reader.answer_ids(batch, max_new_tokens, begun)
                given.seconds.append(time.perf_counter() - began)
            given.passes.append(ids.shape[1])
            given.ids += [upto_end(row, reader.tokenizer.eos_token_id) for row in ids.tolist()]
        print(f"  {start + len(batch)} of {len(prompts)}", file=sys.stderr, flush=True)
    return sides


def side_of(reader: Reader, side: str) -> Any:
    return reader.memory.disabled() if side == "without" else nullcontext()


def rows_read(reader: Reader) -> list[bool]:
    """Whether each prompt of the last pass read a row."""
    reading = list(reader.memory.readings.values())[-1]
    return (reading.selected[:, -1] != NONE).tolist()


def upto_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def speed(answers: dict[str, Answers]) -> dict[str, Any]:
    """Seconds of each side to run a prompt and to generate a token, and the medians over batches of their ratios."""
    before, after = (answers[side] for side in SIDES)
    n = len(before.ids)
    each = {
        side: {
            "tokens": sum(map(len, a.ids)),
            "seconds_per_prompt": round(sum(a.prompt_seconds) / n, 5),
            "seconds_per_pass": round(sum(a.seconds) / sum(a.passes), 5),
        }
        for side, a in answers.items()
    }
    passes = [
        (y / m) / (x / k) for x, k, y, m in zip(before.seconds, before.passes, after.seconds, after.passes, strict=True)
    ]
    prompts = [y / x for x, y in zip(before.prompt_seconds, after.prompt_seconds, strict=True)]
    same = sum(a == b for a, b in zip(before.ids, after.ids, strict=True))
    ratios = {"prompt_ratio": round(statistics.median(prompts), 3), "pass_ratio": round(statistics.median(passes), 3)}
    return {"n": n, "read": sum(after.read), "same_answers": same, **each, **ratios}


def parse_arguments() -> Any:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("memory", type=Path, help="final/ of a run of src/memory_sft.py with reading: tokens")
    parser.add_argument("--questions", type=Path, required=True, help="questions about facts of its bank")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where gsm8k/ is prepared")
    parser.add_argument("--model", help="another copy of the frozen model than the one trained with")
    parser.add_argument("--cache", type=Path, help="another copy of the bank")
    parser.add_argument("--keys", type=Path, help="another copy of the row states")
    parser.add_argument("--limit", type=bounded(1), default=200, help="questions and solutions of each kind")
    parser.add_argument("--batch_size", type=bounded(1), default=16)
    parser.add_argument("--max_new_tokens", type=bounded(1), default=320)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
