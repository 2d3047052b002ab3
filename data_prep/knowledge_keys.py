"""Place the facts of a knowledge bank by what they say, and write product keys that fit.

    python data_prep/knowledge_keys.py --cache data/cache/knowledge_cache.pt --model Qwen/Qwen3-4B \\
        --out data/cache/knowledge_placed.pt

writes the bank in another order, its mapping, and knowledge_placed_keys.safetensors for `keys_path`. Train on the
placed bank with `keys_path`, or without it, and the keys are learned where similar facts are neighbours. A fact is
placed by the mean embedding of its sentence without the object, which a question does not know.

    python data_prep/knowledge_keys.py --cache data/trex_world/bank.pt --model MODEL --layer 5 \\
        --out data/trex_world/states.safetensors

leaves the bank as it is and writes, for `reading: tokens`, what the frozen model says of each row after a layer.
"""

import argparse
import math
import time
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
    from transformers import AutoModelForCausalLM

    from posttrain.data.tokenise import open_tokenizer

    tokenizer = open_tokenizer(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, use_safetensors=True, trust_remote_code=False, dtype="auto"
    )
    metadata = read_metadata(arguments.cache)
    shape = BankShape(metadata["knowledge_num"], metadata["knowledge_length"], len(tokenizer), tokenizer.pad_token_id)
    bank = load_bank(arguments.cache, shape)
    if arguments.layer is None:
        place_facts(arguments, model, tokenizer, bank)
    else:
        write_row_states(arguments, model, bank, tokenizer.pad_token_id)


def place_facts(arguments: argparse.Namespace, model, tokenizer, bank) -> None:
    """The bank in another order, its mapping and its product keys."""
    import torch
    from safetensors.torch import save_file

    from posttrain.memory.bank.placement import place

    embedding = project(model.get_input_embeddings().weight.detach().float(), arguments.seed)
    mappings = read_mappings(arguments.cache)
    vectors = torch.cat(
        [
            mean_embeddings(mappings[start : start + BATCH], tokenizer, embedding)
            for start in range(0, len(mappings), BATCH)
        ]
    )
    cells, keys = place(vectors, math.isqrt(len(bank)), arguments.knowledge_dim // 2, arguments.seed)
    placed = torch.full_like(bank, tokenizer.pad_token_id)
    placed[cells] = bank[[entry["database_index"] for entry in mappings]]
    moved = [{**entry, "database_index": int(cell)} for entry, cell in zip(mappings, cells, strict=True)]
    moved.sort(key=lambda entry: entry["database_index"])
    write_bank(arguments.out, placed, moved, {"source_file": str(arguments.cache), "left_out": 0})
    keys_path = arguments.out.with_name(f"{arguments.out.stem}_keys.safetensors")
    save_file({"keys": keys.contiguous()}, keys_path)
    print(f"{arguments.out}: {len(moved)} facts placed by their words; {keys_path}: {list(keys.shape)}")


def write_row_states(arguments: argparse.Namespace, model, bank, pad_id: int) -> None:
    """The frozen model's states of all rows, in a file."""
    from posttrain.memory.by_token.states import row_states, write_states

    if not 0 <= arguments.layer < model.config.num_hidden_layers:
        raise BankError(f"--layer {arguments.layer}: expected 0 to {model.config.num_hidden_layers - 1}")
    started = time.monotonic()
    states = row_states(model.requires_grad_(False).eval(), bank, pad_id, arguments.layer)
    seconds = time.monotonic() - started
    write_states(arguments.out, states, bank, arguments.layer)
    filled = int((bank != pad_id).any(dim=1).sum())
    print(f"{arguments.out}: {list(states.shape)} after layer {arguments.layer}; {filled} rows in {seconds:.0f} s")


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
    parser.add_argument("--out", type=Path, required=True, help="the placed bank, or with --layer the states")
    parser.add_argument("--layer", type=bounded(0), help="write row states after this layer, from 0; place nothing")
    parser.add_argument("--knowledge-dim", type=bounded(1), default=128, help="size of a key, as in the recipe")
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
