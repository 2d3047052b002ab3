"""Write the tiny world of facts: questions, their knowledge bank, and a random model to be frozen.

python data_prep/tiny_facts.py                    # data/tiny_facts: 256 facts
python data_prep/tiny_facts.py --names 16         # 1024 facts
"""

import argparse
from pathlib import Path

from posttrain.data.sources import tiny_facts
from posttrain.data.sources.omcq import write_questions
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.locks import lock
from posttrain.memory.bank.cache import BankShape, as_fact, build_bank, write_bank

LENGTH = 6


def main() -> None:
    arguments = parse_arguments()
    out = arguments.out
    lock(out)
    tokenizer = tiny_facts.write_base(out / "base", arguments.seed)
    facts = tiny_facts.make_facts(arguments.names, arguments.seed)
    write_questions(out / "sentences.json", [fact.as_sentence() for fact in facts])
    for split in tiny_facts.OTHERS:
        write_questions(out / f"{split}.json", [fact.as_item(split) for fact in facts])
    shape = BankShape(len(facts), LENGTH, len(tokenizer), tokenizer.pad_token_id)
    encode = lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
    bank, mappings, _ = build_bank([as_fact(fact.as_sentence()) for fact in facts], encode, shape)
    write_bank(out / "bank.pt", bank, mappings, {"source_file": str(out / "sentences.json")})
    print(f"{out}: {len(facts)} facts; base, bank.pt, sentences.json, {', '.join(tiny_facts.OTHERS)}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/tiny_facts"))
    parser.add_argument("--names", type=int, default=8, choices=range(1, 17), help="first and last names; 4 · n² facts")
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
