"""Measure what training costs beside the arithmetic: our step, a bare loop and TRL's own step, on one CPU thread.

    make bench-sft                    # about ten minutes
    make bench-sft ARGS="--rounds 2"

Both sides of every ratio run in one process, interleaved, after a warm-up; times are CPU seconds of this process, so a
shared machine matters less; the median of the rounds' ratios is printed with its range. A pair of equal sides (A/A)
shows the noise, and the run fails where that is beyond 5 %.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer, pack_dataset

from posttrain.methods.sft import RecipeTrainer
from posttrain.models.packed_attention import PROBE_LENGTHS, miniature, packing_difference, register

STEPS = 6
WARM_UP = 2
Side = Callable[[], float]


class Clock(TrainerCallback):
    """CPU seconds from the end of the warm-up steps to the end of the last step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.process_time()
        self.started = now if state.global_step == WARM_UP else getattr(self, "started", now)
        self.seconds = now - self.started


def model_of(vocabulary: int, attention: str = "sdpa") -> Any:
    set_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, trust_remote_code=False)


def tokenizer() -> PreTrainedTokenizerFast:
    """Only its pad and end token are ever asked for."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def rows_of(lengths: list[int], vocabulary: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def trainer_seconds(trainer_class: type, data: Dataset, model: Any, steps: int, **arguments: Any) -> float:
    """CPU seconds per step of a trainer, without its warm-up."""
    options = {
        "max_steps": steps, "per_device_train_batch_size": 4, "logging_steps": 10**6, "save_strategy": "no",
        "bf16": False, "gradient_checkpointing": False, "max_length": None, "learning_rate": 1e-4, "disable_tqdm": True,
        "report_to": "none", "use_cpu": True, "dataset_kwargs": {"skip_prepare_dataset": True},
    } | arguments  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = trainer_class(
            model=model, args=SFTConfig(output_dir=directory, **options), train_dataset=data,
            processing_class=tokenizer(), callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds / (steps - WARM_UP)


def bare_seconds(data: Dataset, model: Any, steps: int) -> float:
    """CPU seconds per step of the loop one would write by hand."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = torch.tensor(data["input_ids"]).split(4)
    for step in range(steps):
        if step == WARM_UP:
            started = time.process_time()
        ids = batches[step % len(batches)]
        model(ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - started) / (steps - WARM_UP)


def ratios(sides: dict[str, Side], baseline: str, rounds: int, invert: bool = False) -> dict[str, Any]:
    """Median and range over rounds of each side's seconds by the baseline's (or the inverse: a speed-up)."""
    for side in sides.values():
        side()
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            measured[name].append(side())
    result = {}
    for name, seconds in measured.items():
        values = [b / s if invert else s / b for s, b in zip(seconds, measured[baseline], strict=True)]
        result[name] = {k: round(f(values), 3) for k, f in (("median", statistics.median), ("min", min), ("max", max))}
        result[name]["seconds"] = round(statistics.median(seconds), 4)
    return result


def step_cost(vocabulary: int, rounds: int) -> dict[str, Any]:
    """C8: one optimizer step of 4 × 512 tokens, by a bare loop's."""
    data = rows_of([512] * 16, vocabulary)
    sides: dict[str, Side] = {
        "bare loop": lambda: bare_seconds(data, model_of(vocabulary), STEPS),
        "bare loop again (A/A)": lambda: bare_seconds(data, model_of(vocabulary), STEPS),
        "posttrain": lambda: trainer_seconds(RecipeTrainer, data.with_format("numpy"), model_of(vocabulary), STEPS),
        "TRL SFTTrainer": lambda: trainer_seconds(SFTTrainer, data, model_of(vocabulary), STEPS),
    }
    return ratios(sides, "bare loop", rounds)


def useful_tokens(rounds: int) -> dict[str, Any]:
    """C9: useful tokens per CPU second on 256 rows of 20 to 512 tokens, by TRL in padded batches of 8."""
    rng = random.Random(0)
    lengths = [min(512, max(20, int(rng.lognormvariate(4.8, 0.75)))) for _ in range(256)]
    data, total = rows_of(lengths, 2048), sum(lengths)
    packed = pack_dataset(data, 512, "bfd")

    def seconds_per_token(trainer_class: type, rows: Dataset, attention: str, batch: int, **extra: Any) -> float:
        steps = -(-len(rows) // batch)
        seconds = trainer_seconds(
            trainer_class, rows, model_of(2048, attention), steps, per_device_train_batch_size=batch, **extra
        )
        return seconds * steps / total

    packing = {"packing": True, "max_length": 512}
    sides: dict[str, Side] = {
        "TRL, padded batches of 8": lambda: seconds_per_token(SFTTrainer, data, "sdpa", 8),
        "TRL's script as it comes (autocast, gradient checkpointing)": lambda: seconds_per_token(
            SFTTrainer, data, "sdpa", 8, bf16=True, gradient_checkpointing=True
        ),
        "TRL packed, sdpa": lambda: seconds_per_token(SFTTrainer, packed, "sdpa", 2, **packing),
        "posttrain packed, varlen_sdpa": lambda: seconds_per_token(
            RecipeTrainer, packed.with_format("numpy"), "varlen_sdpa", 2, **packing
        ),
    }
    result = ratios(sides, "TRL, padded batches of 8", rounds, invert=True)
    result["rows"] = {"mean length": round(total / len(lengths)), "fill": round(total / (512 * len(packed)), 3)}
    return result


def packed_attention(rounds: int) -> dict[str, Any]:
    """C10: a batch of 4 packed rows of 1024, each of four examples; varlen_sdpa by SDPA's mask."""
    data = pack_dataset(rows_of([256] * 64, 2048), 1024, "bfd")
    packing = {"packing": True, "max_length": 1024}
    sides: dict[str, Side] = {
        name: lambda name=name: trainer_seconds(
            RecipeTrainer, data.with_format("numpy"), model_of(2048, name), 4, **packing
        )
        for name in ("sdpa", "varlen_sdpa")
    }
    return ratios(sides, "sdpa", rounds, invert=True)


def collate_milliseconds() -> dict[str, float]:
    """C16: collating 8 packed rows of 4096 tokens, from Python lists and from numpy."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    data = pack_dataset(rows_of([1024] * 32, 2048), 4096, "bfd")
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    result = {}
    for name, rows in (("lists", data), ("numpy", data.with_format("numpy"))):
        examples = [rows[i] for i in range(8)]
        times = []
        for _ in range(20):
            started = time.process_time()
            collator(examples)
            times.append(1000 * (time.process_time() - started))
        result[name] = round(statistics.median(times), 2)
    return result


def packing_differences() -> dict[str, Any]:
    """C7: packed by separate logits; the mutants must be seen."""
    small = miniature(model_of(2048, "sdpa"))
    ones = torch.ones(1, sum(PROBE_LENGTHS), dtype=torch.long)
    return {
        "sdpa": packing_difference(small),
        "varlen_sdpa": packing_difference(miniature(model_of(2048, "varlen_sdpa"))),
        "mutant: mask of ones": packing_difference(small, {"attention_mask": ones}),
        "mutant: no positions": packing_difference(small, {"position_ids": None}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    register()
    results = {
        "threads": torch.get_num_threads(),
        "C7 packed - separate logits, share of the largest": packing_differences(),
        "C8 step by bare loop, vocabulary 2k": step_cost(2048, rounds),
        "C8 step by bare loop, vocabulary 32k": step_cost(32768, rounds),
        "C9 useful tokens per second by TRL's padded batches": useful_tokens(rounds),
        "C10 speed-up of varlen_sdpa, 4 rows of 1024": packed_attention(rounds),
        "C16 milliseconds to collate 8 rows of 4096": collate_milliseconds(),
    }
    print(json.dumps(results, indent=2))
    noise = results["C8 step by bare loop, vocabulary 2k"]["bare loop again (A/A)"]["median"]
    if not 0.95 <= noise <= 1.05:
        sys.exit(f"A/A ratio {noise}: the machine is too busy for these numbers")


if __name__ == "__main__":
    main()
