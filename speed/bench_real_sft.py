"""Measure fine-tuning of a real model on a CPU: our step, a bare loop's and that of TRL's SFTTrainer with its defaults.

    python data_prep/gsm8k.py
    make bench-real-sft MODELS=models/qwen2.5-coder-0.5b-instruct        # a quarter of an hour on free cores, 14 GB
    make bench-real-sft MODELS=… ARGS="--only bare-float32 ours-float32 --steps 4"

Every side runs in a process of its own on the same rows of GSM8K in the same order, four at a time, and is measured
after a first step. Seconds are CPU seconds for a thousand tokens that are no padding, so a shared machine matters less;
memory is the most that the process held. OMP_NUM_THREADS sets the threads. That all sides learn the same shows in their
losses.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from posttrain.console import hold_back_noise
from posttrain.hardware import Hardware
from posttrain.methods import sft
from posttrain.recipe.options import SftOptions
from posttrain.recipe.reader import Recipe, read_recipe
from posttrain.training.run import load_tokenizer

RECIPE = "recipes/qwen2.5_0.5b_gsm8k_sft.yaml"
WARM_UP, BATCH, RATE = 1, 4, 1e-5
SIDES = {
    "bare-float32": {"loop": "bare", "precision": "no"},
    "bare-bf16": {"loop": "bare", "precision": "bf16"},
    "trl-float32": {"loop": "trl", "precision": "no"},
    "trl-bf16": {"loop": "trl", "precision": "bf16"},
    "ours-float32": {"loop": "ours", "precision": "no"},
    "ours-bf16": {"loop": "ours", "precision": "bf16"},
    "ours-bf16-packed": {"loop": "ours", "precision": "bf16", "packing": "true", "max_length": "768"},
    "ours-bf16-lora": {
        "loop": "ours",
        "precision": "bf16",
        "use_peft": "true",
        "dtype": "bfloat16",
    },  # over a bf16 base
}


class Clock(TrainerCallback):
    """CPU and wall seconds, loss and tokens of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.tokens = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.count(int(state.num_input_tokens_seen) - self.tokens)
        control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.steps[-1]["loss"] = logs["loss"]

    def count(self, tokens: int) -> None:
        self.tokens += tokens
        seconds = {"cpu": time.process_time() - self.cpu, "wall": time.perf_counter() - self.wall}
        self.steps.append({**seconds, "tokens": tokens})


def recipe_of(arguments: argparse.Namespace, out: str, **changes: str) -> Recipe:
    """The committed recipe on a few rows, in order."""
    values = {
        "model_name_or_path": str(arguments.model), "dataset_name": str(arguments.data), "output_dir": out,
        "max_steps": str(arguments.steps), "gradient_accumulation_steps": "1", "save_strategy": "no",
        "train_sampling_strategy": "sequential", "per_device_train_batch_size": str(BATCH),
        "num_train_examples": str(BATCH * arguments.steps), "warmup_steps": "0", **changes,
    }  # fmt: skip
    if changes.get("packing"):
        values |= {"per_device_train_batch_size": "1", "num_train_examples": str(2 * BATCH * arguments.steps)}
    if changes.get("use_peft"):
        values |= {"lora_r": "16", "lora_alpha": "32", "lora_target_modules": '["all-linear"]'}
    return read_recipe([RECIPE, *(word for key, value in values.items() for word in (f"--{key}", value))], "sft")


def run_side(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on one side in this process."""
    side, clock = dict(SIDES[name]), Clock()
    loop, precision = side.pop("loop"), side.pop("precision")
    hardware = Hardware(None, None, False, "varlen_sdpa" if loop == "ours" else "sdpa", precision, True, 1)
    with tempfile.TemporaryDirectory() as out:
        recipe = recipe_of(arguments, out, **side)
        options, settings = recipe.build(SftOptions), sft.build_arguments(recipe, hardware)
        tokenizer = load_tokenizer(recipe.values["model_name_or_path"], None, recipe.values["eos_token"])
        manifest = json.loads((arguments.data / "manifest.json").read_text())
        rows = sft.load_rows(options, manifest, settings, tokenizer)
        run: dict[str, Callable[[], None]] = {
            "bare": lambda: bare(recipe, rows.train, tokenizer, precision, clock),
            "trl": lambda: trl(recipe, rows.train, tokenizer, precision, out, clock),
            "ours": lambda: ours(recipe, options, settings, hardware, tokenizer, rows, clock),
        }
        run[loop]()
    measured = clock.steps[WARM_UP:]
    tokens = sum(step["tokens"] for step in measured)
    return {
        **{kind: 1000 * sum(step[kind] for step in measured) / tokens for kind in ("cpu", "wall")},
        "step": statistics.median(step["cpu"] for step in measured),
        "losses": [round(step["loss"], 4) for step in clock.steps],
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def load(recipe: Recipe) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        recipe.values["model_name_or_path"], dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )


def bare(recipe: Recipe, rows: Any, tokenizer: Any, precision: str, clock: Clock) -> None:
    """The loop one would write by hand."""
    model = load(recipe).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    for start in range(0, len(rows), BATCH):
        clock.on_step_begin()
        batch = collate([rows[i] for i in range(start, start + BATCH)])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.count(int(batch["attention_mask"].sum()))
        clock.steps[-1]["loss"] = loss.item()


def trl(recipe: Recipe, rows: Any, tokenizer: Any, precision: str, out: str, clock: Clock) -> None:
    """TRL's trainer with its defaults but for the size of a batch, the order of rows and what writes files."""
    arguments = SFTConfig(
        output_dir=out, per_device_train_batch_size=BATCH, max_steps=len(rows) // BATCH, bf16=precision == "bf16",
        use_cpu=True, learning_rate=RATE, train_sampling_strategy="sequential", save_strategy="no", report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True}, include_num_input_tokens_seen="non_padding", disable_tqdm=True,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=load(recipe), args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def ours(
    recipe: Recipe, options: SftOptions, arguments: SFTConfig, hardware: Hardware, tokenizer: Any, rows: sft.Rows,
    clock: Clock,
) -> None:  # fmt: skip
    trainer = sft.build_trainer(recipe, options, arguments, hardware, tokenizer, rows, [])
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(clock)
    trainer.train()


def print_table(results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'':<18}{'CPU s/1,000 tokens':>20}{'wall':>8}{'by bare':>9}{'by TRL':>9}{'peak GiB':>10}  losses")
    for name, result in results.items():
        precision = "bf16" if "bf16" in name else "float32"
        ratios = [
            f"{result['cpu'] / results[other]['cpu']:.2f}" if other in results else ""
            for other in (f"bare-{precision}", f"trl-{precision}")
        ]
        losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
        line = f"{name:<18}{result['cpu']:>20.2f}{result['wall']:>8.1f}{ratios[0]:>9}{ratios[1]:>9}"
        print(f"{line}{result['gib']:>10.1f}  {losses}")
    for loop in ("bare", "trl", "ours"):
        pair = [results.get(f"{loop}-{precision}") for precision in ("float32", "bf16")]
        if all(pair):
            print(f"{loop}: bf16 {pair[0]['cpu'] / pair[1]['cpu']:.2f} times as fast as float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the directory of a model")
    parser.add_argument("--data", type=Path, default=Path("data/gsm8k"))
    parser.add_argument("--steps", type=int, default=4, help="of each side, the first of them not measured")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for path, remedy in (
        (arguments.model, "MODELS=DIR"),
        (arguments.data, "python data_prep/gsm8k.py"),
    ):
        if not path.is_dir():
            sys.exit(f"{path}: no such directory; {remedy}")
    if arguments.side:
        hold_back_noise()
        print(json.dumps(run_side(arguments.side, arguments)))
        return
    results = {}
    for name in arguments.only:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(results[name]), flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
