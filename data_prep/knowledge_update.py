"""Change rows of a knowledge bank: replace, add or remove facts. A model with a memory needs no training to see it.

    python data_prep/knowledge_update.py --cache data/cache/knowledge_cache.pt --changes changes.jsonl \\
        --tokenizer Qwen/Qwen3-4B --out data/cache/knowledge_cache_2.pt

A line of changes.jsonl is {"op": "replace", "uuid": …, "sentence": …, "object": …}, {"op": "remove", "uuid": …} or
{"op": "add", "sentence": …}; `database_index` may name the row instead of `uuid`. A memory with `reading: tokens` finds
an added row by what it says. One with `reading: mean` reads it where the trained keys happen to lead to it;
`database_index` puts it into a row that a question is already led to.
"""

import argparse
from pathlib import Path

from posttrain.data.records import read_json_lines
from posttrain.errors import ArgumentParser, run_script
from posttrain.memory.bank.cache import BankError, BankShape, load_bank, read_metadata
from posttrain.memory.bank.update import apply_changes, as_change, read_mappings, write_changed


def main() -> None:
    arguments = parse_arguments()
    records = read_json_lines(arguments.changes)
    changes = [as_change(record, f"{arguments.changes}: change {i}") for i, record in enumerate(records, start=1)]
    if arguments.out.resolve() == arguments.cache.resolve() or not changes:
        raise BankError(f"{arguments.out}: expected another file than --cache, and one change or more")
    from posttrain.data.tokenise import open_tokenizer

    tokenizer = open_tokenizer(arguments.tokenizer)
    metadata = read_metadata(arguments.cache)
    try:
        shape = BankShape(
            metadata["knowledge_num"], metadata["knowledge_length"], len(tokenizer), tokenizer.pad_token_id
        )
    except KeyError:
        raise BankError(f"{arguments.cache}: has no mapping beside it, so its rows cannot be named") from None
    bank = load_bank(arguments.cache, shape)
    encode = lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
    changed, mappings = apply_changes(bank, read_mappings(arguments.cache), changes, encode, shape)
    write_changed(arguments.out, changed, mappings, bank, metadata)
    rows = int((changed != bank).any(dim=1).sum())
    print(f"{arguments.out}: {len(changes)} changes, {rows} rows differ, {len(mappings)} facts")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="the bank to start from; it is not changed")
    parser.add_argument("--changes", type=Path, required=True, help="JSON Lines, made one after another")
    parser.add_argument("--tokenizer", required=True, help="directory or hub name; the one the bank was built with")
    parser.add_argument("--out", type=Path, required=True, help="the changed bank")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
