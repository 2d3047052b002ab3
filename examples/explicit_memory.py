"""Ask a model with an explicit memory, change a fact in its bank, ask again: the answer changes without training.

    python examples/explicit_memory.py outputs/tiny_memory/final
    python examples/explicit_memory.py outputs/qwen2.5_0.5b_trex_memory/final --wording "Complete with a name: {} ____"

takes the first fact of the bank and a wrong object, and asks about the second fact, too, which the edit must not touch;
--question, --uuid, --sentence and --object name your own.
"""

import argparse
from pathlib import Path

from posttrain.errors import PosttrainError, run_script
from posttrain.memory.bank.cache import BankShape
from posttrain.memory.bank.update import apply_changes, as_change, read_mappings
from posttrain.memory.inference import Reader, open_reader


def main() -> None:
    arguments = parse_arguments()
    # 1. The frozen model with its memory and bank.
    reader = open_reader(arguments.memory)
    mappings = read_mappings(reader.cache)
    uuid = arguments.uuid or mappings[0]["uuid"]
    fact = next((entry for entry in mappings if entry["uuid"] == uuid), None)
    if fact is None:
        raise PosttrainError(f"{reader.cache}: holds no fact of uuid {uuid!r}")
    before, found, _ = fact["sentence"].rpartition(fact["object"])
    question = arguments.question or arguments.wording.format(before.strip())
    others = [entry for entry in mappings if entry["object"] != fact["object"]]
    alike = [entry for entry in others if entry.get("predicate") == fact.get("predicate")]
    if not others and not arguments.object:
        raise PosttrainError(f"{reader.cache}: all facts have the object {fact['object']!r}; name another by --object")
    other = arguments.object or (alike or others)[0]["object"]
    sentence = arguments.sentence or before + other
    if not found and not arguments.sentence:
        raise PosttrainError(f"{fact['sentence']!r} does not name its object; write the new sentence with --sentence")
    untouched = next(entry for entry in mappings if entry["uuid"] != uuid)
    questions = [question, arguments.wording.format(untouched["sentence"].rpartition(untouched["object"])[0].strip())]

    # 2. Ask, edit, ask; remove, ask.
    row = fact["database_index"]
    ask(reader, f"bank row {row}: {fact['sentence'].strip()}", questions, [])
    edit = {"op": "replace", "uuid": uuid, "sentence": sentence, "object": other}
    ask(reader, f"bank row {row}: {sentence.strip()}", questions, [edit])
    ask(reader, f"bank row {row}: empty", questions, [{"op": "remove", "uuid": uuid}])


def ask(reader: Reader, title: str, questions: list[str], changes: list[dict[str, str]]) -> None:
    """Answer questions from the bank with some changes; data_prep/knowledge_update.py makes them in the file."""
    config = reader.description["config"]
    shape = BankShape(config.knowledge_num, config.knowledge_length, len(reader.tokenizer), config.pad_id)
    encode = lambda sentences: reader.tokenizer(sentences, add_special_tokens=False)["input_ids"]  # noqa: E731
    changed = [as_change(change, "this change") for change in changes]
    bank, _ = apply_changes(reader.memory.bank.cpu(), read_mappings(reader.cache), changed, encode, shape)
    print(title)
    with reader.reading(bank):
        for question in questions:
            print(f"  {question} → {reader.ask(question)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path, help="final/ of a run of src/memory_sft.py")
    parser.add_argument("--question", help="what to ask; without it the sentence up to its object")
    parser.add_argument("--wording", default="{}", help="how the model is asked for the rest of a sentence, {}")
    parser.add_argument("--uuid", help="the fact to change; without it the bank's first")
    parser.add_argument("--object", help="what the fact shall say instead")
    parser.add_argument("--sentence", help="the new sentence; without it the old one with the new object")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
