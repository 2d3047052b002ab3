"""Train a memory: the loss of the answer, the auxiliary losses of retrieval, and checkpoints of the memory alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from posttrain.data.encode import IGNORED
from posttrain.memory.data import Collator
from posttrain.memory.files import load_memory, save_memory, save_pth
from posttrain.memory.layer import ExplicitMemory
from posttrain.methods.sft import RecipeTrainer
from posttrain.recipe.memory_options import MemoryOptions

LATEST = "sft_latest.pth"  # the published name; every save renews it, the final one last


class MemoryTrainer(RecipeTrainer):
    """SFT of `model.memory`. `description` goes into every memory.json beside the memory's shape."""

    def __init__(self, options: MemoryOptions, description: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options, self.description = options, description
        self.memory: ExplicitMemory = kwargs["model"].memory

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One step, forward and backward, with the batch's counterfactual rows in the bank."""
        rows, sentences = inputs.pop("edited_rows"), inputs.pop("edited_sentences")
        with self.memory.with_rows(rows, sentences):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy of the answer plus the auxiliary losses; in evaluation the cross entropy alone."""
        index, labels, mask = inputs.pop("database_index"), inputs["labels"], inputs["attention_mask"]
        inputs.pop("edited_rows", None)
        inputs.pop("edited_sentences", None)
        self.memory.readings.clear()
        self.memory.starts, self.memory.given = answer_starts(labels, mask), index if model.training else None
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.memory.starts = self.memory.given = None
        facts = asks_for_a_fact(labels, index, self.processing_class.eos_token_id)
        figures = self.memory.figures(mask.bool(), facts, index)
        steps = self.current_gradient_accumulation_steps if model.training and num_items_in_batch is not None else 1
        store = self._metrics["train" if model.training else "eval"]
        store["loss_ce"].append(loss.item() * steps)
        for name, value in figures.items():
            store[name].append(value.item())
        if model.training:
            weights = {
                "loss_similarity": self.options.similarity_loss_coef,
                "loss_diversity": self.options.diversity_loss_coef,
                "loss_router": self.options.router_loss_coef,
            }
            weighted = [weight * figures[name] for name, weight in weights.items() if weight and name in figures]
            loss = loss + sum(weighted) / steps
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_memory(Path(output_dir or self.args.output_dir), self.memory, self.description)
        if self.options.save_pth:
            save_pth(Path(self.args.output_dir) / LATEST, self.memory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_memory(Path(resume_from_checkpoint), self.memory)

    def _load_best_model(self) -> None:
        load_memory(Path(self.state.best_model_checkpoint), self.memory)


class EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch it draws counterfactual facts for, after a resume too."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.collator.epoch = int(state.epoch + 1e-6)


def asks_for_a_fact(labels: Tensor, index: Tensor, end: int) -> Tensor:
    """Positions that predict a token of the answer, the end left out, of questions whose bank row is known.

    labels: (B, S)    index: (B,), -1 where unknown    Returns: (B, S)
    """
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    answer = labels[:, 1:]
    predicts[:, :-1] = (answer != IGNORED) & (answer != end) & (index >= 0)[:, None]
    return predicts


def answer_starts(labels: Tensor, mask: Tensor) -> Tensor:
    """The place that predicts the first label of each row; the last token's where there is none.

    labels, mask: (B, S), padded on the right    Returns: (B,)
    """
    answers = labels[:, 1:] != IGNORED
    return torch.where(answers.any(dim=1), answers.int().argmax(dim=1), mask.sum(dim=1) - 1)
