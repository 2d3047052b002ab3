"""Compare generation in slots with `generate` of transformers in static batches, on outputs of very unequal length.

    make bench-eval

Greedy, one thread, the same prompts and the same end for each; every completion must be the same token for token.
Printed: useful tokens per CPU second of each in interleaved rounds, and their ratio.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.generation.slots import SlotEngine

VOCABULARY = 2048
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3,
}  # fmt: skip


def questions(n: int) -> list[list[int]]:
    """Prompts of 16 to 200 tokens."""
    rng = random.Random(0)
    return [[rng.randrange(VOCABULARY) for _ in range(rng.randint(16, 200))] for _ in range(n)]


def endings(n: int, longest: int) -> list[int]:
    """How long each completion gets: 8 to `longest` tokens, most of them short."""
    rng = random.Random(1)
    return [min(longest, 8 + int(rng.lognormvariate(4.1, 0.9))) for _ in range(n)]


def static(model: Qwen2ForCausalLM, prompts: list[list[int]], lengths: list[int], batch: int) -> dict[int, list[int]]:
    """`generate` over batches of similar prompts; a batch runs until its longest completion ends."""
    found, order = {}, sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=ids.device)
        longest = max(lengths[i] for i in rows)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found |= {i: row[: lengths[i]] for i, row in zip(rows, out[:, width:].tolist(), strict=True)}
    return found


def in_slots(
    model: Qwen2ForCausalLM, prompts: list[list[int]], wanted: dict[int, list[int]], slots: int
) -> dict[int, list[int]]:
    """The same completions, each ended where its wanted tokens are there."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    ends, last = {tuple(ids) for ids in wanted.values()}, {ids[-1] for ids in wanted.values()}
    engine = SlotEngine(model, slots)
    longest = max(map(len, wanted.values()))
    return dict(
        engine.complete([(i, prompts[i]) for i in order], longest, lambda ids: ids[-1] in last and tuple(ids) in ends)
    )


def cpu_seconds(
    function: Callable[..., dict[int, list[int]]], *arguments: object
) -> tuple[dict[int, list[int]], float]:
    began = time.process_time()
    found = function(*arguments)
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest completion")
    parser.add_argument("--batch", type=int, default=32, help="rows at once, for both")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    prompts, lengths = questions(asked.prompts), endings(asked.prompts, asked.longest)
    ratios = []
    for number in range(asked.rounds):
        wanted, theirs = cpu_seconds(static, model, prompts, lengths, asked.batch)
        found, ours = cpu_seconds(in_slots, model, prompts, wanted, asked.batch)
        same = sum(found[i] == wanted[i] for i in wanted)
        ratios.append(theirs / ours)
        tokens = sum(lengths)
        rates = f"slots {tokens / ours:.0f}, generate {tokens / theirs:.0f} tokens a CPU second"
        print(f"round {number + 1}: {rates}, ratio {ratios[-1]:.2f}, {same}/{len(wanted)} identical", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
