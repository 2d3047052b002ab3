"""Build the knowledge bank: sentences as a matrix of token ids. If the bank is there already, check it.

    python data_prep/knowledge_cache.py --source data/knowledge_base/sentence_trex_data.json --tokenizer Qwen/Qwen3-4B
    python data_prep/knowledge_cache.py --triples triples.jsonl --patterns patterns.jsonl --tokenizer Qwen/Qwen3-4B
    python data_prep/knowledge_cache.py --tokenizer Qwen/Qwen3-4B                          # only checks the cache

A cache that exists is never taken on trust and never overwritten without --recompute. Triples become sentences by the
first pattern of their relation, `[X] was born in [Y].`
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from posttrain.console import counted
from posttrain.data.records import read_json_lines
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.locks import lock
from posttrain.memory.bank.cache import (
    BankError,
    BankShape,
    Fact,
    build_bank,
    facts_of_triples,
    load_bank,
    mapping_path,
    read_facts,
    write_bank,
)


def main() -> None:
    arguments = parse_arguments()
    from posttrain.data.tokenise import open_tokenizer

    tokenizer = open_tokenizer(arguments.tokenizer)
    if tokenizer.pad_token_id is None:
        raise BankError(f"{arguments.tokenizer}: has no pad token, which fills the rows")
    length = arguments.knowledge_length
    shape = BankShape(arguments.knowledge_num, length, len(tokenizer), tokenizer.pad_token_id)
    source = arguments.source or arguments.triples
    if arguments.recompute or not arguments.cache.is_file():
        if source is None:
            raise BankError(f"{arguments.cache}: nothing to build it from; add --source or --triples")
        lock(arguments.cache.parent, f".{arguments.cache.name}.lock")
        encode = lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
        bank, mappings, left_out = build_bank(read_source(arguments), encode, shape)
        write_bank(arguments.cache, bank, mappings, {"source_file": str(source), "left_out": left_out})
        faults = sum("processing_error" in entry for entry in mappings)
        truncated = sum(entry["is_truncated"] for entry in mappings)
        print(f"{mapping_path(arguments.cache)}: {len(mappings)} facts, {truncated} cut to {length} tokens")
        print(f"rows left empty by a faulty fact: {faults}; facts that found no row: {left_out}")
    bank = load_bank(arguments.cache, shape)
    empty = int((bank == shape.pad_id).all(dim=1).sum())
    print(f"{arguments.cache}: good, {list(bank.shape)}, {empty} rows are padding")


def read_source(arguments: argparse.Namespace) -> Iterator[Fact]:
    if arguments.source:
        return read_facts(arguments.source)
    patterns: dict[str, str] = {}
    for record in read_json_lines(arguments.patterns):
        patterns.setdefault(str(record.get("relation")), str(record.get("pattern")))
    triples = read_json_lines(arguments.triples)
    without = Counter(triple.get("relation") for triple in triples if triple.get("relation") not in patterns)
    if without:
        print(f"left out, as {arguments.patterns} has no pattern for their relation: {counted(without)}")
    return facts_of_triples((triple for triple in triples if triple.get("relation") in patterns), patterns)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="JSON array of sentences")
    parser.add_argument("--triples", type=Path, help="JSON Lines with relation, subject, object")
    parser.add_argument("--patterns", type=Path, help="JSON Lines with relation and pattern, for --triples")
    parser.add_argument("--tokenizer", required=True, help="directory or hub name")
    parser.add_argument("--cache", type=Path, default=Path("data/cache/knowledge_cache.pt"))
    parser.add_argument("--knowledge-num", type=bounded(1), default=1024 * 1024, help="rows, a perfect square")
    parser.add_argument("--knowledge-length", type=bounded(1), default=16, help="tokens of a row")
    parser.add_argument("--recompute", action="store_true", help="build it again where it exists")
    arguments = parser.parse_args()
    if (arguments.triples is None) != (arguments.patterns is None) or (arguments.source and arguments.triples):
        parser.error("give --source, or --triples with --patterns, or none of them to check a cache")
    return arguments


if __name__ == "__main__":
    run_script(main)
