"""GRPO whose completions are written by a test, on a tiny random model; all that follows them is the trainer's own.

As a script, under a launcher: `scripted_grpo.py MODEL OUT` takes a step for every loss and two texts of the completions
that cannot be judged, and writes the weights of each.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from posttrain.grading.grader import Grader
from posttrain.methods.grpo.custom_rewards import load_rewards
from posttrain.methods.grpo.trainer import COMPLETIONS_FILE, GrpoTrainer

RIGHT, WRONG = "so \\boxed{3}", "\\boxed{4}"  # of the gold 3; decided without algebra, so that no deadline matters
UNDECIDED = ("\\boxed{9^{9^{9^{9}}}}", "I think that it is \\boxed{8^{9^{9^{9^{9}}}}}")
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {}, "dr_grpo": {}, "dapo": {}, "bnpo": {}, "cispo": {"epsilon_high": 5.0}, "sapo": {},
    "luspo": {"importance_sampling_level": "sequence"}, "vespo": {},
}  # fmt: skip
BATCH = 16
gc.freeze()  # a trainer collects garbage at its start, which takes seconds with all that is imported
GRADER = Grader(workers=1, deadline_seconds=0.05)  # one for all steps: its process takes seconds to start


class ScriptedTrainer(GrpoTrainer):
    """Answers with `texts`, one for each completion of a generation over all processes."""

    texts: list[str]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        first = self.accelerator.process_index * len(prompt_ids)
        own = self.texts[first : first + len(prompt_ids)]
        ids = self.processing_class(own, add_special_tokens=False)["input_ids"]
        return [[*one, self.processing_class.eos_token_id] for one in ids], None


def build(
    model: Path, out: Path, texts: list[str], rewards: tuple[str, ...], subtract_mean: bool = True, **arguments: Any
) -> ScriptedTrainer:
    """A trainer of one step on two questions."""
    rows = {"prompt": ["1 + 2 = ", "5 - 2 = "], "answer": ["3", "3"], "id": ["a", "b"]}
    values = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_generations": 8, "max_steps": 1,
        "learning_rate": 1e-2, "max_completion_length": 64, "logging_steps": 1, "beta": 0.0, "loss_type": "grpo",
        "reward_weights": [1.0, *[0.0] * (len(rewards) - 1)], **arguments,
    }  # fmt: skip
    trainer = ScriptedTrainer(
        grader=GRADER, subtract_mean=subtract_mean, model=AutoModelForCausalLM.from_pretrained(model),
        args=GRPOConfig(
            output_dir=str(out), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
            disable_tqdm=True, save_strategy="no", **values,
        ),
        reward_funcs=load_rewards(rewards), train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    trainer.texts = texts
    out.mkdir(parents=True, exist_ok=True)
    return trainer


def take_a_step(
    model: Path, out: Path, texts: list[str], rewards: tuple[str, ...] = ("accuracy", "boxed_format"), **keys: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, float]]:
    """The weights after one step on `texts`, the lines of completions.jsonl, and the logged figures."""
    trainer = build(model, out, texts, rewards, **keys)
    trainer.train()
    lines = [json.loads(line) for line in (out / COMPLETIONS_FILE).read_text().splitlines()]
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
    return weights, lines, trainer.state.log_history[0]


def one_group(undecided: str) -> list[str]:
    """A group of 16 over two processes: seven right, seven wrong, one without a verdict in each process."""
    return [*[RIGHT] * 5, *[WRONG] * 2, undecided, *[RIGHT] * 2, undecided, *[WRONG] * 5]


def main() -> None:
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    share = {"gradient_accumulation_steps": 2, "num_generations": BATCH}
    for loss, keys in LOSSES.items():
        for number, undecided in enumerate(UNDECIDED):
            directory = out / f"{loss}-{number}"
            weights, _, _ = take_a_step(model, directory, one_group(undecided), loss_type=loss, **share, **keys)
            if int(torch.distributed.get_rank()) == 0:
                save_file(weights, directory / "weights.safetensors")
    GRADER.pool.close()


if __name__ == "__main__":
    main()
