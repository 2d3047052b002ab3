"""Train and evaluate on a hundred batches of random lengths; print the bytes held after each of them.

    python tests/helpers/resident.py MODEL OUT "give back"|keep|grpo

On the standard error: the peak, and the CPU seconds of the process and of the kernel for it.

The vocabulary is large, so that logits are the most of what a step holds. `grpo` is a hundred steps of GRPO instead,
whose completions end at random.
"""

import json
import random
import resource
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, SFTConfig

from posttrain.grading.grader import Grader
from posttrain.methods.grpo.trainer import GrpoTrainer
from posttrain.methods.sft import RecipeTrainer
from posttrain.models.host_memory import peak_resident_bytes, resident_bytes
from posttrain.training.callbacks import GiveBack

VOCABULARY, BATCHES, ROWS = 8192, 100, 4


class Held(TrainerCallback):
    """Bytes held after each batch. The longest comes first, so none needs more than that."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {"training": [], "evaluation": []}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen["training"].append(resident_bytes())

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.seen["evaluation"].append(resident_bytes())


def rows() -> Dataset:
    rng = random.Random(0)
    lengths = [120] * ROWS + [rng.randint(20, 120) for _ in range(BATCHES - 1) for _ in range(ROWS)]
    ids = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def build_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def train_grpo(model: str, out: Path) -> dict[str, list[int]]:
    """Resident bytes after every step; one token in twenty ends a completion."""
    rng, held, policy = random.Random(0), Held(), build_model()
    policy.generation_config.eos_token_id = list(range(VOCABULARY // 20))
    rows = [
        {"id": str(i), "prompt": "3 + 4 = " * (rng.randint(2, 12) if i else 12), "answer": "7"} for i in range(BATCHES)
    ]
    arguments = GRPOConfig(
        output_dir=str(out), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        save_strategy="no", disable_tqdm=True, max_steps=BATCHES, per_device_train_batch_size=2 * ROWS,
        num_generations=ROWS, max_completion_length=60, seed=0,
    )  # fmt: skip
    with Grader(workers=1) as grader:
        trainer = GrpoTrainer(
            grader=grader, model=policy, args=arguments, processing_class=AutoTokenizer.from_pretrained(model),
            reward_funcs=[lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids]],
            train_dataset=Dataset.from_list(rows), callbacks=[],
        )  # fmt: skip
        trainer.add_callback(held)
        trainer.train()
    return {"training": held.seen["training"]}


def main(model: str, out: Path, mode: str) -> None:
    if mode == "grpo":
        print(json.dumps(train_grpo(model, out)))
        return
    arguments = SFTConfig(
        output_dir=str(out), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=BATCHES, save_strategy="no",
        per_device_train_batch_size=ROWS, per_device_eval_batch_size=ROWS,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    data, held = rows(), Held()
    trainer = RecipeTrainer(
        model=build_model(), args=arguments, train_dataset=data, eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model), callbacks=[],
    )  # fmt: skip
    if mode == "keep":
        trainer.remove_callback(GiveBack)
    trainer.add_callback(held)
    trainer.train()
    trainer.evaluate()
    print(json.dumps(held.seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak, seconds = peak_resident_bytes() / 2**20, f"{used.ru_utime:.1f} + {used.ru_stime:.1f} CPU seconds"
    print(f"peak {peak:.0f} MiB, {seconds}", file=sys.stderr)
