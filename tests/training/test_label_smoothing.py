"""Label smoothing in the trainer: the closed form, from one forward pass."""

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from posttrain.methods.sft import RecipeTrainer

LABELS = torch.tensor([[-100, -100, 7, 8, 2], [-100, 9, 2, -100, -100]])


@pytest.fixture
def trainer(tmp_path: Path) -> RecipeTrainer:
    torch.manual_seed(0)
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, label_smoothing_factor=0.2, report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True}, logging_steps=1,
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]]})
    base = REPOSITORY / "assets/tiny_base"
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return RecipeTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def smoothed(logits: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The sum over labels of (1 − ε) · −log p(label) + ε · mean −log p, written out."""
    log_probs = logits[:, :-1].log_softmax(-1)
    total = torch.zeros(())
    for row, position in (LABELS[:, 1:] != -100).nonzero().tolist():
        p = log_probs[row, position]
        total = total - (1 - epsilon) * p[labels[row, position + 1]] - epsilon * p.mean()
    return total


@pytest.mark.parametrize("num_items, divisor", [(None, 5), (8, 8)])
def test_the_loss_is_the_closed_form_of_one_forward_pass(trainer, num_items, divisor):
    ids = torch.randint(1, 500, (2, 5), generator=torch.Generator().manual_seed(1))
    passes = []
    trainer.model.register_forward_hook(lambda *_: passes.append(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": LABELS.clone()}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    assert len(passes) == 1
    expected = smoothed(trainer.model(ids).logits, LABELS, 0.2) / divisor
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert trainer._metrics["train"]["mean_token_accuracy"]
