"""Turn T-REx triples into a world for the explicit memory: bank, base, and questions split by relation and subject.

    python speed/trex_world.py --data TREX_DIRECTORY --out data/trex_world                  # and a random frozen Qwen3
    python speed/trex_world.py --data TREX_DIRECTORY --out data/trex_world --model MODEL    # for a pretrained one

Facts are the triples whose relation has a pattern that names the subject first; the question is the pattern up to the
object. Every fact is in the bank. Training asks about four relations of five, and of these about nine subjects of ten;
`new_subjects.json` asks about the tenth, `new_relations.json` about the fifth relations. Wrong options are objects of
other facts of the relation, drawn as often as facts have them, so that a frequent object is not an answer's mark.
`<split>_omcq.json` has the same questions with lettered options, `train_both.json` those of training in both forms.
`added.jsonl` adds 150 facts about names that were made up (data_prep/knowledge_update.py); `added.json` asks for them.
"""

import argparse
import json
import math
import random
from collections import defaultdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from posttrain import atomic
from posttrain.data.records import read_json_lines
from posttrain.data.sources.omcq import write_questions
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import run_script
from posttrain.memory.bank.cache import BankShape, Fact, build_bank, write_bank

LENGTH, OTHERS, VOCABULARY, ADDED = 24, 4, 8000, 150
SYLLABLES = ("bel", "dor", "fen", "gri", "hal", "ka", "lum", "mor", "na", "os", "pra", "quen", "ri", "sul", "tev", "zo")
ASKED = "Complete with a name: {} ____"  # a pretrained model is asked in words, a random one by the beginning alone


def main() -> None:
    arguments = parse_arguments()
    patterns: dict[str, str] = {}
    for record in read_json_lines(arguments.data / "patterns.jsonl"):
        patterns.setdefault(record["relation"], record["pattern"])
    # Inside a question a word has a blank before it, which is part of a pretrained model's tokens.
    blank = " " if arguments.model else ""
    facts = [as_fact(t, patterns[t["relation"]], blank) for t in read_json_lines(arguments.data / "triples.jsonl")
             if "[X]" in patterns.get(t["relation"], "").split("[Y]")[0]]  # fmt: skip
    random.Random(0).shuffle(facts)  # the file is sorted by relation, which would be half an address
    if arguments.model:
        tokenizer = open_tokenizer(arguments.model)
    else:
        tokenizer = write_base(arguments.out / "base", [fact.sentence for fact in facts])
    r = math.isqrt(len(facts) - 1) + 1
    encode = lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
    bank, mappings, _ = build_bank(facts, encode, BankShape(r * r, LENGTH, len(tokenizer), tokenizer.pad_token_id))
    write_bank(arguments.out / "bank.pt", bank, mappings, {"source_file": "triples.jsonl"})
    splits = split(facts, ASKED if arguments.model else "{}")
    for name, items in splits.items():
        write_questions(arguments.out / f"{name}.json", items)
        write_questions(arguments.out / f"{name}_omcq.json", [with_options(item["target"][0]) for item in items])
    both = splits["train"] + [with_options(item["target"][0]) for item in splits["train"]]
    write_questions(arguments.out / "train_both.json", both)
    changes, questions = invented(splits["new_subjects"], {fact.uuid: fact for fact in facts})
    lines = [json.dumps(change, ensure_ascii=False) + "\n" for change in changes]
    atomic.write_bytes(arguments.out / "added.jsonl", "".join(lines).encode())
    write_questions(arguments.out / "added.json", questions)
    cut = sum(entry["is_truncated"] for entry in mappings)
    print(
        f"{len(facts)} facts in {r}² rows, {cut} cut to {LENGTH} tokens; { ({k: len(v) for k, v in splits.items()}) }"
    )


def as_fact(triple: dict[str, str], pattern: str, blank: str) -> Fact:
    sentence = pattern.split("[Y]")[0].replace("[X]", triple["subject"]).strip() + " " + triple["object"]
    return Fact(blank + sentence, triple["uuid"], triple["subject"], triple["relation"], triple["object"])


def split(facts: list[Fact], asked: str) -> dict[str, list[dict]]:
    """Questions with wrong options of the same relation; subjects and relations are held out whole."""
    objects = defaultdict(list)
    for fact in facts:
        objects[fact.predicate].append(fact.object)
    new_relations = set(sorted(objects)[::5])
    splits: dict[str, list[dict]] = {"train": [], "new_subjects": [], "new_relations": []}
    for fact in facts:
        draw = random.Random(fact.uuid)
        others = draw.sample(objects[fact.predicate], len(objects[fact.predicate]))  # frequent ones come first
        wrong = list(dict.fromkeys(other for other in others if other != fact.object))[:OTHERS]
        choices = sorted([fact.object, *wrong])
        question = asked.format(fact.sentence.removesuffix(fact.object).strip())
        target = {"question": question, "correct_answer": fact.object, "uuid": fact.uuid, "choices": choices}
        held_out = random.Random(fact.subject).random() < 0.1
        name = "new_relations" if fact.predicate in new_relations else "new_subjects" if held_out else "train"
        splits[name].append({"target": [target]})
    return splits


def with_options(target: dict[str, Any]) -> dict[str, Any]:
    """The question with its choices in random order, each behind a letter, as data_prep/omcq.py writes them."""
    choices = random.Random(target["uuid"]).sample(target["choices"], len(target["choices"]))
    options = [f"{letter}:{choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    answer = options[choices.index(target["correct_answer"])]
    changed = {"options": ",".join(options), "correct_answer": answer, "choices": choices}
    return {"target": [target | changed]}


def invented(items: list[dict], facts: dict[str, Fact]) -> tuple[list[dict], list[dict]]:
    """Facts of new subjects said of names that were made up, with another object, as changes and as questions."""
    draw, changes, questions = random.Random(0), [], []
    for item in items:
        target = item["target"][0]
        fact, wrong = facts[target["uuid"]], [c for c in target["choices"] if c != target["correct_answer"]]
        if not wrong or fact.sentence.count(fact.subject) != 1 or fact.object in fact.subject:
            continue
        name = " ".join("".join(draw.choices(SYLLABLES, k=draw.choice((2, 3)))).capitalize() for _ in range(2))
        uuid, answer = f"invented-{len(changes)}", draw.choice(wrong)
        sentence = fact.sentence.removesuffix(fact.object).replace(fact.subject, name) + answer
        changes.append({"op": "add", "uuid": uuid, "sentence": sentence, "subject": name, "object": answer})
        asked = target["question"].replace(fact.subject, name)
        questions.append({"target": [target | {"question": asked, "correct_answer": answer, "uuid": uuid}]})
        if len(changes) == ADDED:
            break
    return changes, questions


def write_base(directory: Path, sentences: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words carry the blank after them, and a Qwen3 of two layers with random weights."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    words = [piece for sentence in sentences for piece in (sentence, *sentence.split())]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<end>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=fast.pad_token_id, eos_token_id=fast.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    fast.save_pretrained(directory)
    model.save_pretrained(directory)
    print(f"{directory}: {json.dumps(sentences[:2], ensure_ascii=False)}")
    return fast


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with triples.jsonl and patterns.jsonl")
    parser.add_argument("--out", type=Path, default=Path("data/trex_world"))
    parser.add_argument("--model", help="a pretrained model's directory, whose tokenizer writes the bank")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
