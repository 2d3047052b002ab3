"""The memory that reads tokens, in tiny models: one row a question, found where its answer begins, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from tiny_memory import KINDS, LENGTH, ROWS, VOCABULARY, random_bank, tiny
from transformers import PreTrainedModel

from posttrain.data.rows import row_id
from posttrain.memory.attach import attach
from posttrain.memory.bank.cache import BankError
from posttrain.memory.build import questions_of_the_bank
from posttrain.memory.by_token import fitting
from posttrain.memory.by_token.comparison import rarity
from posttrain.memory.by_token.memory import TokenMemory
from posttrain.memory.by_token.router import NONE, nearest
from posttrain.memory.by_token.states import read_states, row_states, states_of, write_states
from posttrain.memory.layer import MemoryConfig, MemoryFault

CONFIG = MemoryConfig(
    layers=(2, 3), knowledge_num=ROWS, knowledge_length=LENGTH, pad_id=0, knowledge_dim=16, num_candidates=4,
    reading="tokens", router_layer=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def bank_with_an_empty_row() -> torch.Tensor:
    bank = random_bank()
    bank[5] = 0
    return bank


def with_memory(kind: str, reads: bool = True) -> PreTrainedModel:
    """A model with a memory that takes its best candidate, or never one."""
    model, bank = tiny(kind), bank_with_an_empty_row()
    memory = attach(model, CONFIG, bank, row_states(model, bank, 0, CONFIG.router_layer))
    memory.memory_gate.comparison.none.data = torch.tensor([-1e9 if reads else 1e9, 0.0])
    return model


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))


def test_only_the_answer_reads_and_without_a_row_the_model_is_the_frozen_one(kind, ids):
    plain = tiny(kind)(input_ids=ids).logits
    reading, refusing = with_memory(kind), with_memory(kind, reads=False)
    reading.memory.starts = torch.tensor([7, 9])
    logits = reading(input_ids=ids).logits
    for row, start in enumerate((7, 9)):
        assert torch.equal(logits[row, :start], plain[row, :start])
        assert (logits[row, start:] - plain[row, start:]).abs().amax(dim=-1).min() > 1e-4
    assert torch.equal(refusing(input_ids=ids).logits, plain)
    with reading.memory.with_bank(torch.zeros(ROWS, LENGTH, dtype=torch.int64)):
        assert torch.equal(reading(input_ids=ids).logits, plain)
    with reading.memory.disabled():
        assert torch.equal(reading(input_ids=ids).logits, plain)


def test_later_steps_read_what_the_prompt_chose(kind, ids):
    model = with_memory(kind)
    model.memory.starts = torch.tensor([7, 7])
    whole = model(input_ids=ids).logits[:, 7:]
    selected = model.memory.route.selected
    model.memory.starts = None
    first = model(input_ids=ids[:, :8], use_cache=True)
    rest = model(input_ids=ids[:, 8:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first.logits[:, -1:], rest], dim=1), whole, atol=1e-4, rtol=0)
    assert torch.equal(model.memory.route.selected, selected)


def test_padding_on_the_left_changes_nothing(kind, ids):
    model = with_memory(kind)
    padded, mask = F.pad(ids, (3, 0)), F.pad(torch.ones_like(ids), (3, 0))
    answers = [
        model.generate(i, attention_mask=m, max_new_tokens=5, do_sample=False)[:, -5:]
        for i, m in ((ids, torch.ones_like(ids)), (padded, mask))
    ]
    assert torch.equal(*answers)


def test_the_row_that_is_read_matters_and_no_other(kind, ids):
    model = with_memory(kind)
    before = model(input_ids=ids).logits
    read = model.memory.route.selected
    looked_at = set(model.memory.route.candidates.flatten().tolist())
    free = torch.tensor([next(row for row in range(ROWS) if row not in looked_at and row != 5)])
    with model.memory.with_rows(free, torch.full((1, LENGTH), 9)):
        assert torch.equal(model(input_ids=ids).logits, before)
    model.memory.given = read
    other = model.memory.bank[read].clone()
    other[:, 0] = 9
    with model.memory.with_rows(read, other):
        assert (model(input_ids=ids).logits - before)[:, -1].abs().max() > 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_readers_get_their_gradients_and_the_model_none(kind, ids, checkpointing):
    model = with_memory(kind).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    model.memory.starts, model.memory.given = torch.tensor([5, 5]), torch.tensor([3, 7])
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("memory.layers."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_rows_that_changed_get_keys_of_the_frozen_model_and_the_others_keep_theirs(kind, tmp_path):
    model, bank = tiny(kind), bank_with_an_empty_row()
    write_states(tmp_path / "s.safetensors", row_states(model, bank, 0, 1), bank, 1)
    known = read_states(tmp_path / "s.safetensors", 1)
    assert states_of(model, bank, 0, 1, known)[1] == 0
    changed = bank.clone()
    changed[[5, 9]] = torch.arange(1, 13).view(2, 6)
    states, count = states_of(model, changed, 0, 1, known)
    assert count == 2
    torch.testing.assert_close(states, row_states(model, changed, 0, 1), atol=0.02, rtol=0.02)
    assert known[0][5].abs().max() == 0 and states[5].abs().max() > 0
    assert len(model.model.layers) == 4
    for wrong in (2, 1):
        with pytest.raises(BankError, match="states"):
            read_states(tmp_path / ("s.safetensors" if wrong == 2 else "none.safetensors"), wrong)
    with pytest.raises(BankError, match="expected"):
        states_of(model, bank[:16], 0, 1, known)


def test_an_empty_row_is_never_near():
    questions, keys = torch.eye(2, 4), torch.eye(4)[[0, 0, 1]]
    scores, rows = nearest(questions, keys, torch.tensor([False, True, True]), 8)
    assert rows.tolist() == [[1, 2, NONE], [2, 1, NONE]]
    assert scores[:, -1].isneginf().all()


def test_rare_tokens_count_more():
    bank = torch.tensor([[1, 1, 2], [1, 3, 0], [1, 0, 0], [0, 0, 0]])
    assert rarity(bank, 0, 5).tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]


def test_the_gate_learns_which_row_a_question_asks_for_and_to_take_none():
    model, bank = tiny("qwen2"), bank_with_an_empty_row()
    memory: TokenMemory = attach(model, CONFIG, bank, row_states(model, bank, 0, 1))
    rows = torch.tensor([row for row in range(ROWS) if row != 5])
    prompts = [[1, *bank[row, :3].tolist(), 2] for row in rows]
    states = fitting.states_of_prompts(model, prompts, 0, 1)
    embedding = model.get_input_embeddings().weight
    fitting.fit_gate(memory, embedding, prompts, states, rows, steps=60, seed=0)
    selected, _ = fitting.chosen_rows(memory, embedding, prompts, states)
    assert (selected == rows).float().mean() > 0.9
    without, _ = fitting.chosen_rows(memory, embedding, prompts, states, without=rows)
    assert (without == NONE).float().mean() > 0.8
    model(input_ids=torch.tensor(prompts[:1]))  # the same through the model
    assert int(memory.route.selected) == int(selected[0])


def test_the_lookup_is_fitted_to_questions_from_all_of_a_sorted_file():
    rows = [{"question": {"id": row_id(str(i))}, "fact": {"row": -1 if i % 10 == 0 else i}} for i in range(1000)]
    chosen = [row["fact"]["row"] for row in questions_of_the_bank(rows, 100)]
    assert len(set(chosen)) == 100 and -1 not in chosen
    assert 30 <= sum(row < 500 for row in chosen) <= 70
    assert [row["fact"]["row"] for row in questions_of_the_bank(rows[::-1], 100)] == chosen


def test_a_memory_of_tokens_needs_states_and_an_early_router():
    with pytest.raises(MemoryFault, match="row states"):
        attach(tiny("qwen2"), CONFIG, bank_with_an_empty_row())
    late = MemoryConfig(**{**vars(CONFIG), "router_layer": 3})
    with pytest.raises(MemoryFault, match="up to 2"):
        attach(tiny("qwen2"), late, bank_with_an_empty_row(), torch.zeros(ROWS, 64))
