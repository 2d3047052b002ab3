"""Ask a model with an explicit memory, with the true, a shuffled, an empty and an edited bank, and without memory.

    python src/memory_eval.py outputs/tiny_memory/final --questions data/tiny_facts/validation.json

Writes samples.jsonl, table.txt and last banks.json into --out (evals/<run>/memory). --banks may also name `removed`,
in which every asked row is empty, and `others_edited`, in which a thousand rows are edited that no question asks about;
how many answers are the same as under each bank before, and which of two banks answers more questions right (McNemar),
stands in banks.json, and with `true` how its rows are used.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import atomic, jsonl
from posttrain.console import Progress, header, plural, say
from posttrain.data.rows import row_id
from posttrain.errors import ArgumentParser, PosttrainError, bounded, check_writable, run_script
from posttrain.hardware import machine_facts
from posttrain.lineage import code_state
from posttrain.memory.bank.cache import check_mapping
from posttrain.memory.bank.questions import Fact, Question, facts_by_uuid, mapping_facts, read_questions
from posttrain.models.source import evaluation_name

if TYPE_CHECKING:
    from posttrain.memory.inference import Reader

BANKS = ("true", "shuffled", "empty", "edited", "no_memory")
MORE_BANKS = ("removed", "others_edited")


def main() -> None:
    arguments = parse_arguments()
    out = arguments.out or Path("evals") / evaluation_name(str(arguments.memory)) / "memory"
    check_writable(out)
    questions = read_limited(arguments.questions, arguments.limit)
    say(f"memory_eval {arguments.memory} → {out}")

    from posttrain.memory import evaluation
    from posttrain.memory.inference import open_reader

    reader = open_reader(arguments.memory, arguments.model, arguments.cache, arguments.keys)
    facts = facts_by_uuid(check_mapping(reader.cache), {question.uuid for question in questions})
    pairs = [(question, facts.get(question.uuid, Fact())) for question in questions]
    summaries = evaluate_banks(arguments, reader, pairs, out / "samples.jsonl")
    prompts = [reader.prompt_ids(question.content) for question in questions]
    table = evaluation.table(summaries)
    atomic.write_bytes(out / "table.txt", (table + "\n").encode())
    settings = {name: str(value) for name, value in vars(arguments).items()}
    jsonl.write_sealed(
        out / "banks.json",
        {
            "settings": settings,
            "code": code_state(),
            "bank": reader.description["bank"],
            "with_fact": sum(fact.row >= 0 for _, fact in pairs),
            "banks": summaries,
            "usage": evaluation.usage(reader, prompts, arguments.batch_size) if "true" in summaries else {},
        },
    )
    say(f"{table}\n→ {out}/banks.json")


def evaluate_banks(
    arguments: argparse.Namespace, reader: "Reader", pairs: list[tuple[Question, Fact]], path: Path
) -> dict[str, dict[str, Any]]:
    """Answer the questions with every bank; samples go to `path`, summaries come back by bank."""
    from posttrain.memory import evaluation, experiments

    say(header({"asked": f"{plural(len(pairs), 'question')} with each bank", **machine_facts(reader.model)}))
    facts = [fact for _, fact in mapping_facts(check_mapping(reader.cache))]
    counts, answered, summaries = Counter(fact.object for fact in facts), {}, {}
    with atomic.writing(path) as samples:
        for name in arguments.banks:
            what = experiments.experiment(name, reader, pairs, facts, arguments.seed)
            progress = Progress(f"{name} bank", "questions", len(what.asked))
            records = evaluation.run(reader, what, arguments.batch_size, arguments.max_new_tokens, progress, counts)
            progress.close()
            for record in records:
                samples.write((json.dumps({"bank": name, **record}, ensure_ascii=False) + "\n").encode())
            same = {other: evaluation.same_answers(records, theirs) for other, theirs in answered.items()}
            paired = {other: evaluation.paired(records, theirs) for other, theirs in answered.items()}
            summaries[name] = evaluation.summarise(records) | {
                "left_out": len(pairs) - len(records),
                "same_answers_as": same,
                "paired_with": paired,
            }
            answered[name] = records
    return summaries


def read_limited(path: Path, limit: int | None) -> list[Question]:
    """The questions of a file, at most `limit` of them, chosen by content hash."""
    questions = sorted(read_questions(path), key=lambda question: row_id(question.content, question.answer))
    if not questions:
        raise PosttrainError(f"{path}: holds no questions")
    return questions[:limit]


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path, help="final/ of a run of src/memory_sft.py, or one of its checkpoints")
    parser.add_argument("--questions", type=Path, required=True, help=".json of data_prep/omcq.py, or conversations")
    parser.add_argument("--model", help="another copy of the frozen model than the one trained with")
    parser.add_argument("--cache", type=Path, help="another copy of the bank, or one made from it by changing rows")
    parser.add_argument("--keys", type=Path, help="another copy of the row states, where the memory reads tokens")
    parser.add_argument("--out", type=Path, help="directory of the result; evals/<run>/memory without it")
    parser.add_argument("--banks", nargs="+", default=list(BANKS), choices=BANKS + MORE_BANKS)
    parser.add_argument("--limit", type=bounded(1), help="ask so many questions, chosen by content hash")
    parser.add_argument("--batch-size", type=bounded(1), default=64)
    parser.add_argument("--max-new-tokens", type=bounded(1), default=50)
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0, help="seed of the shuffled and the edited bank")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
