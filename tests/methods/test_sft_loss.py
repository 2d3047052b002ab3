"""The loss of fine-tuning without TRL's kernel: the head sees labelled positions alone, and nothing else changes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import LORA, SIZES, build
from transformers import AutoModelForCausalLM, Trainer

from posttrain.models.labelled_head import labelled_only, targets
from posttrain.models.packed_attention import NAME, register

LENGTHS, PROMPTS = (9, 4, 7, 2), (5, 0, 3, 2)  # the last row has no label that counts


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(1, SIZES["vocab_size"], (n,), generator=generator).tolist() for n in LENGTHS]
    return [
        {"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row, prompt in zip(ids, PROMPTS, strict=True)
    ]


def step(trainer: Any, batch: dict[str, Any], own: bool, n: int | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a batch; `own` takes the model's own cross entropy over all positions."""
    trainer.model.zero_grad()
    batch = {**batch, "use_cache": False}
    count = None if n is None else torch.tensor(n)
    if own:
        trainer.compute_loss_func = None
        loss = Trainer.compute_loss(trainer, trainer.model, batch, num_items_in_batch=count)
    else:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    return loss.item(), {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("keys", [{}, LORA | {"lora_dropout": 0.0}], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_loss_and_gradients_are_those_of_the_models_own_cross_entropy(models, tmp_path, architecture, keys, packed):
    trainer = build(models / architecture, tmp_path, keys, **({"packing": True, "max_length": 64} if packed else {}))
    trainer.model.train()
    batch = trainer.data_collator([dict(row) for row in rows()])
    if packed:
        register()
        trainer.model.set_attn_implementation(NAME)
        assert batch["input_ids"].shape == (1, sum(LENGTHS))
    seen: list[int] = []
    trainer.model.get_output_embeddings().register_forward_hook(lambda *a: seen.append(a[2].shape[:-1].numel()))
    for n in (None, 40):  # 40: of a step of several batches
        loss, gradients = step(trainer, batch, own=False, n=n)
        assert trainer._metrics["train"]["mean_token_accuracy"] and trainer._metrics["train"]["entropy"]
        own_loss, own_gradients = step(trainer, batch, own=True, n=n)
        trainer.compute_loss_func = trainer.labelled_loss
        assert loss == pytest.approx(own_loss, rel=1e-6)
        assert gradients.keys() == own_gradients.keys()
        for name, gradient in gradients.items():
            scale = own_gradients[name].abs().max().clamp(min=1e-12)
            assert (gradient - own_gradients[name]).abs().max() <= 2e-6 * scale, name
    labelled = targets(batch["labels"]).numel()
    assert seen[0] == labelled < seen[1] == batch["labels"].numel()


def test_a_batch_without_labels_has_loss_and_gradient_zero(models, tmp_path):
    trainer = build(models / "qwen2", tmp_path, {})
    ids = torch.ones((2, 5), dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": torch.full_like(ids, -100)}
    loss, gradients = step(trainer, batch, own=False, n=None)
    assert loss == 0 and not any(gradient.any() for gradient in gradients.values())


def test_evaluation_has_the_models_own_loss(models, tmp_path):
    trainer = build(models / "qwen2", tmp_path, {}, per_device_eval_batch_size=3)
    held_out = trainer.evaluate()
    losses = []
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            losses += [trainer.model(**batch).loss.item()] * len(batch["input_ids"])
    assert held_out["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert 0 <= held_out["eval_mean_token_accuracy"] <= 1 < held_out["eval_entropy"]


@settings(max_examples=20)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_logits_are_those_that_predict_the_labels_in_order(labelled):
    from tiny_trainer import CONFIGS

    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2"]).eval()
    kept = torch.tensor(labelled)
    ids = torch.arange(1, kept.numel() + 1).view(kept.shape)
    labels = ids.where(kept, -100)
    with torch.no_grad():
        every = model(ids).logits
        with labelled_only(model, labels):
            some = model(ids).logits
        assert model(ids).logits.shape == every.shape  # and afterwards as before
    places = [(row, place - 1) for row, place in kept.nonzero().tolist() if place]
    assert targets(labels).tolist() == [ids[row, place + 1].item() for row, place in places]
    expected = torch.stack([every[place] for place in places]) if places else every[:0, 0]
    torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-6)
