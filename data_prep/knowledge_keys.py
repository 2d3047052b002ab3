"""Place the facts of a knowledge bank by what they say, and write product keys that fit.

    python data_prep/knowledge_keys.py --cache data/cache/knowledge_cache.pt --model Qwen/Qwen3-4B \\
        --out data/cache/knowledge_placed.pt

writes the bank in another order, its mapping, and knowledge_placed_keys.safetensors for `keys_path`. Train on the
placed bank with `keys_path`, or without it, and the keys are learned where similar facts are neighbours. A fact is
placed by the mean embedding of its sentence without the object, which a question does not know.
"""

import argparse
import math
from pathlib import Path

from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.memory.bank.cache import BankError, BankShape, load_bank, read_metadata, write_bank
from posttrain.memory.bank.questions import Fact, with_object
from posttrain.memory.bank.update import read_mappings

BATCH = 4096
WIDTH = 256  # embeddings are projected to this many dimensions at random before anything is held for all facts


def main() -> None:
    arguments = parse_arguments()
    if arguments.out.resolve() == arguments.cache.resolve():
        raise BankError(f"{arguments.out}: expected another file than --cache")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from posttrain.data.tokenise import open_tokenizer
    from posttrain.memory.bank.placement import place

    tokenizer = open_tokenizer(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, use_safetensors=True, trust_remote_code=False, dtype="auto"
    )
    embedding = project(model.get_input_embeddings().weight.detach().float(), arguments.seed)
    metadata, mappings = read_metadata(arguments.cache), read_mappings(arguments.cache)
    length, number = metadata["knowledge_length"], metadata["knowledge_num"]
    bank = load_bank(arguments.cache, BankShape(number, length, len(tokenizer), tokenizer.pad_token_id))
    vectors = torch.cat(
        [
            mean_embeddings(mappings[start : start + BATCH], tokenizer, embedding)
            for start in range(0, len(mappings), BATCH)
        ]
    )
    cells, keys = place(vectors, math.isqrt(number), arguments.knowledge_dim // 2, arguments.seed)
    placed = torch.full_like(bank, tokenizer.pad_token_id)
    placed[cells] = bank[[entry["database_index"] for entry in mappings]]
    moved = [{**entry, "database_index": int(cell)} for entry, cell in zip(mappings, cells, strict=True)]
    moved.sort(key=lambda entry: entry["database_index"])
    write_bank(arguments.out, placed, moved, {"source_file": str(arguments.cache), "left_out": 0})
    keys_path = arguments.out.with_name(f"{arguments.out.stem}_keys.safetensors")
    save_file({"keys": keys.contiguous()}, keys_path)
    print(f"{arguments.out}: {len(moved)} facts placed by their words; {keys_path}: {list(keys.shape)}")


def project(embedding, seed: int):
    """The embedding matrix in at most WIDTH dimensions, distances kept on average.  (V, D) → (V, min(D, WIDTH))"""
    import torch

    if embedding.shape[1] <= WIDTH:
        return embedding
    generator = torch.Generator().manual_seed(seed)
    return embedding @ torch.randn(embedding.shape[1], WIDTH, generator=generator) / math.sqrt(WIDTH)


def mean_embeddings(entries: list[dict], tokenizer, embedding):
    """What a question can know of each fact, as the mean embedding of its words without the object.  (n, d)"""
    import torch

    facts = [Fact(e["database_index"], e["sentence"], e["subject"], e["object"]) for e in entries]
    texts = [(with_object(fact, "") or fact.sentence or " ").strip() for fact in facts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    flat = torch.tensor([token for row in ids for token in row])
    offsets = torch.tensor([0, *(len(row) for row in ids[:-1])]).cumsum(0)
    return torch.nn.functional.embedding_bag(flat, embedding, offsets, mode="mean")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="the bank to place anew; it is not changed")
    parser.add_argument("--model", required=True, help="whose tokenizer and embeddings are used; directory or hub name")
    parser.add_argument("--out", type=Path, required=True, help="the placed bank")
    parser.add_argument("--knowledge-dim", type=bounded(1), default=128, help="size of a key, as in the recipe")
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
