"""Hold the plan's peak of memory against that of real steps on a CPU, for settings of every kind.

    make bench-plan                                    # 12 GB, half an hour
    make bench-plan ARGS="--only GRPO DPO 'LoRA over bf16' --out found.json"

Three real steps of each setting, in a process of its own, with random weights. `allocated` is the most that PyTorch had
allocated at once, which on a GPU is `torch.cuda.max_memory_allocated`; the plan's peak is of that. `resident` is the
most that the process held: libraries, and freed blocks that the system's allocator could not use again.
"""

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain import atomic
from posttrain.data.manifest import check_dataset
from posttrain.grading.grader import Grader
from posttrain.hardware import Hardware
from posttrain.methods.grpo import build as grpo
from posttrain.models.host_memory import peak_resident_bytes
from posttrain.models.loading import load_tokenizer
from posttrain.pipelines.study.trial import Trial, build_trainer
from posttrain.plan.memory.process import GIB, Sizes
from posttrain.plan.memory.training_sizes import Topology, training_sizes
from posttrain.plan.shapes import read_shape
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.reader import Recipe, override_arguments, read_recipe

TOKENIZER = Path("assets/tiny_base")  # its tokenizer; a vocabulary may be larger than what a tokenizer gives
QWEN2, QWEN3, LLAMA = "qwen2", "qwen3", "llama"
SHAPES = {  # hidden, feed-forward, layers, heads, key heads, vocabulary
    "Llama 5M": (LLAMA, 64, 256, 8, 4, 2, 64_000),
    "Qwen2 40M": (QWEN2, 256, 1024, 4, 8, 2, 151_936),
    "Qwen3 110M": (QWEN3, 512, 1536, 12, 8, 4, 151_936),
    "Qwen2 500M": (QWEN2, 896, 4864, 24, 14, 2, 151_936),
}
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["all-linear"], "dtype": "bfloat16"}


@dataclass(frozen=True)
class Setting:
    """A trainer on a shape; `values` are fields of its recipe, `rows` of `length` tokens its micro-batch."""

    shape: str
    trainer: str = "sft"
    rows: int = 4
    length: int = 512
    values: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    attention: str = "varlen_sdpa"
    precision: str = "no"
    processes: int = 1
    teacher: str | None = None


SETTINGS = {
    "SFT, float32": Setting("Qwen2 40M"),
    "SFT, bf16 autocast": Setting("Qwen2 40M", precision="bf16"),
    "SFT, packed": Setting("Qwen2 40M", precision="bf16", values={"packing": True}),
    "SFT, eager attention": Setting("Llama 5M", attention="eager"),
    "SFT, checkpointing": Setting("Llama 5M", rows=8, checkpointing=True),
    "SFT, frozen layers": Setting("Qwen2 40M", values={"freeze_layers": 2, "freeze_embeddings": True}),
    "SFT, Adafactor": Setting("Qwen3 110M", length=256, values={"optim": "adafactor"}),
    "SFT, AdamW of 8 bits": Setting("Qwen3 110M", length=256, values={"optim": "adamw_bnb_8bit"}),
    "SFT, two processes": Setting("Qwen3 110M", rows=2, length=256, processes=2),
    "LoRA over bf16": Setting("Qwen3 110M", precision="bf16", values=LORA),
    "LoRA, checkpointing": Setting("Qwen2 500M", rows=2, precision="bf16", checkpointing=True, values=LORA),
    "SFT, all weights": Setting("Qwen2 500M", rows=1, length=256, precision="bf16"),
    "DPO": Setting("Qwen2 40M", "dpo", rows=2, length=256),
    "Distillation": Setting("Qwen2 40M", "distill", teacher="Qwen3 110M", precision="bf16"),
    "GRPO": Setting("Qwen2 40M", "grpo", rows=8, length=64),
}  # fmt: skip


def write_model(shape: str, directory: Path) -> str:
    """A model of random weights, and a tokenizer."""
    kind, hidden, feed_forward, layers, heads, key_heads, vocabulary = SHAPES[shape]
    target, tokenizer = directory / shape.replace(" ", "_"), load_tokenizer(str(TOKENIZER), None, None)
    if not target.exists():
        config = AutoConfig.for_model(
            kind, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=hidden // heads, vocab_size=vocabulary,
            tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return str(target)


def trial_of(setting: Setting, directory: Path) -> Trial:
    values = {"model_name_or_path": write_model(setting.shape, directory), **setting.values}
    if setting.trainer == "distill":
        values |= {"teacher_model_name_or_path": write_model(setting.teacher, directory), "random_init": False}
    recipe = f"recipes/tiny_{setting.trainer}.yaml"
    return Trial(
        recipe, setting.trainer, values, setting.rows, setting.length, setting.checkpointing, setting.attention,
        setting.precision,
    )  # fmt: skip


def most_allocated(trainer: Any) -> int:
    """Train, and return the most bytes that tensors of this process held at once, weights included."""
    parameters = [thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter]
    places = [parameter.data_ptr() for parameter in parameters]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.train()
    # Those that moved, as where processes share weights out, are allocated in what was recorded.
    stayed = [p.untyped_storage() for p, place in zip(parameters, places, strict=True) if p.data_ptr() == place]
    before = sum({storage.data_ptr(): storage.nbytes() for storage in stayed}.values())
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return before + max(itertools.accumulate(changes))


def sizes_of(setting: Setting, recipe: Recipe, longest_prompt: int = 0) -> Sizes:
    topology = Topology(
        processes=setting.processes, sharding="ddp" if setting.processes > 1 else "none",
        autocast=setting.precision != "no", use_cpu=True, checkpointing=setting.checkpointing,
        attention=setting.attention,
    )  # fmt: skip
    sizes = training_sizes(recipe.values, topology, read_shape(recipe.values["model_name_or_path"], None))
    if longest_prompt:  # which a plan of GRPO takes for 256 tokens
        sizes = replace(sizes, batch=replace(sizes.batch, length=longest_prompt + setting.length))
    return sizes


def measure(name: str, directory: Path) -> dict[str, Any]:
    """Three steps in this process: the plan's peak, and both that were measured, in bytes."""
    setting = SETTINGS[name]
    trial = trial_of(setting, directory)
    hardware = Hardware(
        None, None, setting.checkpointing, setting.attention, setting.precision, True, setting.processes
    )
    train = train_grpo if setting.trainer == "grpo" else train_on_rows
    sizes, allocated = train(setting, trial, hardware, directory)
    return {
        "setting": name, "shape": setting.shape, "rows": setting.rows, "length": setting.length,
        "planned": round(sizes.peak - sizes.runtime - sizes.kept), "allocated": allocated,
        "planned_resident": round(sizes.peak), "resident": peak_resident_bytes(),
        "parts": {part: round(value) for part, value in sizes.parts.items()},
    }  # fmt: skip


def train_on_rows(setting: Setting, trial: Trial, hardware: Hardware, directory: Path) -> tuple[Sizes, int]:
    recipe = read_recipe([trial.recipe, *override_arguments(trial.overrides(directory / "run"))], trial.trainer)
    return sizes_of(setting, recipe), most_allocated(build_trainer(recipe, hardware, trial))


def train_grpo(setting: Setting, trial: Trial, hardware: Hardware, directory: Path) -> tuple[Sizes, int]:
    """Three steps of GRPO on word problems; random weights write to the last token that they may."""
    subprocess.run([sys.executable, "data_prep/tiny_math.py", "--out", directory], check=True, capture_output=True)
    overrides = {
        "dataset_name": str(directory / "tiny_math"), "num_generations": setting.rows, "guard_steps": 0,
        "probe": "off", "max_completion_length": setting.length,
    }  # fmt: skip
    overrides = {**trial.overrides(directory / "run"), **overrides}
    recipe = read_recipe([trial.recipe, *override_arguments(overrides)], "grpo")
    options, arguments = recipe.build(GrpoOptions), grpo.build_arguments(recipe, hardware)
    tokenizer = load_tokenizer(recipe.values["model_name_or_path"], None, None)
    prompts = grpo.load_prompts(options, check_dataset(Path(options.dataset_name)), tokenizer)
    with Grader() as grader:
        trainer = grpo.build_trainer(recipe, options, arguments, hardware, tokenizer, prompts, grader)
        return sizes_of(setting, recipe, prompts.longest), most_allocated(trainer)


def run_alone(name: str, directory: Path) -> dict[str, Any]:
    """Measure a setting in processes of its own."""
    processes, precision = SETTINGS[name].processes, SETTINGS[name].precision
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": precision,
    }  # fmt: skip
    launcher = [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)
    ]  # fmt: skip
    for shape in filter(None, (SETTINGS[name].shape, SETTINGS[name].teacher)):
        write_model(shape, directory)
    done = subprocess.run(
        [*launcher, __file__, "--setting", name, str(directory)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"error: {name}: {done.stderr[-3000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"setting"')))


def line_of(found: dict[str, Any]) -> str:
    planned, allocated, of_process, resident = (
        found[key] / GIB for key in ("planned", "allocated", "planned_resident", "resident")
    )
    rows = f"{found['rows']} × {found['length']}"
    return (
        f"| {found['setting']} | {found['shape']} | {rows} | {planned:.2f} | {allocated:.2f} "
        f"| {planned / allocated - 1:+.1%} | {of_process:.1f} | {resident:.1f} |"
    )


HEAD = """| setting | model | rows | planned GiB | allocated GiB | off | process: planned GiB | resident GiB |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--out", type=Path, help="a JSON file of what was found")
    parser.add_argument("--setting", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.setting:
        name, directory = given.setting
        found = measure(name, Path(directory))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found), flush=True)
        return
    found = []
    print(HEAD, flush=True)
    for name in given.only:
        with tempfile.TemporaryDirectory() as directory:
            found.append(run_alone(name, Path(directory)))
        print(line_of(found[-1]), flush=True)
    if given.out:
        atomic.write_json(given.out, found)


if __name__ == "__main__":
    main()
