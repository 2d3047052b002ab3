"""The explicit memory in tiny Qwen2 and Qwen3 models: it starts as nothing, reads exactly, gets its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_memory import LENGTH, ROWS, VOCABULARY, random_bank, tiny
from torch import nn
from transformers import PreTrainedModel

from posttrain.memory.attach import attach, freeze_report, spaced_layers
from posttrain.memory.layer import MemoryConfig, MemoryFault
from posttrain.memory.retrieval import product_key_topk

CONFIG = MemoryConfig(
    layers=(1, 3), knowledge_num=ROWS, knowledge_length=LENGTH, pad_id=0, knowledge_dim=16, num_candidates=4
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def awake(model: PreTrainedModel, config: MemoryConfig = CONFIG, **changes) -> PreTrainedModel:
    """A model whose memory says something, as if it had been trained."""
    memory = attach(model, config, random_bank())
    for block in memory.layers.values():
        last = block.gated_memory_fusion.down_proj
        nn.init.normal_(last[-1].weight if config.fusion_rank else last.weight, std=0.3)
    return model


@pytest.fixture(params=["qwen2", "qwen3"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))


def test_a_memory_that_was_just_attached_changes_nothing(kind, ids):
    model = tiny(kind)
    before = model(input_ids=ids).logits
    attach(model, CONFIG, random_bank())
    assert torch.equal(model(input_ids=ids).logits, before)
    assert set(model.memory.readings) == {1, 3}


def test_only_the_memory_is_trained_and_its_names_are_the_published_ones(kind):
    model = tiny(kind)
    attach(model, CONFIG, random_bank())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("memory.")}
    parts = ("memory_gate", "gated_memory_fusion", "memory_norm")
    assert all(any(part in name for part in parts) for name in trained)
    assert "layers.1.memory_gate.gate_proj.weight" in model.memory.state_dict()
    assert "bank" not in model.memory.state_dict()
    assert "可训练参数" in freeze_report(model)


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_product_keys_find_what_brute_force_finds(r, count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(2, 3, r, generator=generator)
    scores, found = product_key_topk(rows, columns, count)
    every = (rows[..., :, None] + columns[..., None, :]).flatten(-2)
    best, places = every.topk(min(count, r), dim=-1)
    torch.testing.assert_close(scores, best)
    assert torch.equal(found, places)


def test_a_token_sees_only_what_is_before_it_and_evaluation_has_no_noise(kind, ids):
    model = awake(tiny(kind))
    first = model(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, first)
    other = ids.clone()
    other[:, -1] = 7
    torch.testing.assert_close(model(input_ids=other).logits[:, :-1], first[:, :-1], atol=1e-5, rtol=0)


def test_a_step_with_the_cache_is_the_step_without(kind, ids):
    model = awake(tiny(kind))
    whole = model(input_ids=ids).logits
    past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    step = model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(step[:, -1], whole[:, -1], atol=1e-4, rtol=0)


def test_padding_on_the_left_changes_nothing(kind, ids):
    model = awake(tiny(kind))
    padded = F.pad(ids, (3, 0))
    mask = F.pad(torch.ones_like(ids), (3, 0))
    logits = model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(logits[:, 3:], model(input_ids=ids).logits, atol=1e-3, rtol=0)
    answers = [
        model.generate(i, attention_mask=m, max_new_tokens=5, do_sample=False)[:, -5:]
        for i, m in ((ids, torch.ones_like(ids)), (padded, mask))
    ]
    assert torch.equal(*answers)


def test_a_row_that_is_read_matters_and_one_that_is_not_does_not(kind, ids):
    model = awake(tiny(kind))
    before = model(input_ids=ids).logits
    readings = model.memory.readings.values()
    looked_at = {int(row) for reading in readings for row in reading.candidates.flatten()}
    read = model.memory.readings[1].selected[0, -1:]
    free = torch.tensor([next(row for row in range(ROWS) if row not in looked_at)])
    with model.memory.with_rows(read, torch.full((1, LENGTH), 9)):
        assert (model(input_ids=ids).logits - before).abs().max() > 1e-4
    with model.memory.with_rows(free, torch.full((1, LENGTH), 9)):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.memory.bank, random_bank())
    assert torch.equal(model(input_ids=ids).logits, before)


def test_padding_of_a_row_is_not_read_and_an_empty_bank_says_nothing(kind, ids):
    model = tiny(kind)
    block = attach(model, CONFIG, random_bank()).layers["1"]
    embedding = model.get_input_embeddings().weight
    row = torch.tensor([[5, 9, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    embedded = block._embed(row, embedding)
    torch.testing.assert_close(embedded[0], embedding[[5, 9]].mean(0))
    assert torch.equal(embedded[1], torch.zeros(64))
    with model.memory.with_bank(torch.zeros(ROWS, LENGTH, dtype=torch.int64)):
        assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("fusion_rank", [0, 8])
def test_every_part_gets_its_gradient_from_the_answer_alone(kind, ids, fusion_rank):
    model = awake(tiny(kind), MemoryConfig(**{**vars(CONFIG), "fusion_rank": fusion_rank, "gate_rank": fusion_rank}))
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("memory."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_diversity_reaches_the_gate(kind, ids):
    model = awake(tiny(kind)).train()
    model(input_ids=ids)
    model.memory.readings[1].diversity.mean().backward()
    assert model.memory.layers["1"].memory_gate.keys.grad.abs().max() > 0


def test_gradient_checkpointing_has_the_same_gradients(kind, ids):
    gradients = []
    for checkpointing in (False, True):
        model = awake(tiny(kind)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(5)
        with model.memory.with_rows(torch.arange(ROWS), random_bank().flip(0)):
            loss = model(input_ids=ids, labels=ids).loss
            loss = loss + sum(
                r.diversity.mean() + r.row_scores.logsumexp(-1).mean() for r in model.memory.readings.values()
            )
            loss.backward()
        gradients.append([p.grad for p in model.memory.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_a_bfloat16_model_keeps_a_float32_memory(kind, ids):
    model = awake(tiny(kind).bfloat16())
    assert model.memory.layers["1"].memory_norm.weight.dtype == torch.float32
    assert model(input_ids=ids).logits.dtype == torch.bfloat16


def test_it_trains_under_bfloat16_autocast(kind, ids):
    model = awake(tiny(kind)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
        loss = loss + sum(r.diversity.mean() - r.similarity.mean() for r in model.memory.readings.values())
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.memory.parameters())


def test_what_cannot_have_a_memory_is_refused(kind):
    model = tiny(kind)
    with pytest.raises(MemoryFault, match="shape"):
        attach(model, CONFIG, random_bank()[:16])
    attach(model, CONFIG, random_bank())
    with pytest.raises(MemoryFault, match="already"):
        attach(model, CONFIG, random_bank())


def test_layers_are_listed_or_spaced():
    assert spaced_layers(4, 36) == (8, 17, 26, 35)
    assert spaced_layers([0, 2], 4) == (0, 2)
    for wrong in (0, 5, [], [2, 1], [4], [-1], [1, 1]):
        with pytest.raises(MemoryFault):
            spaced_layers(wrong, 4)
