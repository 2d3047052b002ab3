"""Generation in slots: the tokens of `generate`, whatever else is in the batch, for every architecture of ours."""

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.errors import PosttrainError
from posttrain.generation.sample import Decoding, unheard
from posttrain.generation.samplers import HfSampler
from posttrain.generation.slots import Row, SlotEngine, choose, uniforms

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.4,
}  # fmt: skip
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
}
ENDS = list(range(5, 20))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(20, 97, (n,), generator=generator).tolist() for n in lengths]


def complete(model, asked: list[list[int]], slots: int, budget: int = 20, **sampling) -> list[list[int]]:
    engine = SlotEngine(model, slots)
    found = dict(engine.complete(list(enumerate(asked)), budget, lambda ids: ids[-1] in ENDS, **sampling))
    return [found[i] for i in range(len(asked))]


def test_greedy_tokens_are_those_of_generate(model):
    asked = prompts([1, 3, 3, 9, 17, 30, 2, 12, 25, 40])
    ours = complete(model, asked, slots=4)
    for prompt, ids in zip(asked, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=ENDS, pad_token_id=0
        )
        assert ids == theirs[0, len(prompt) :].tolist()
    assert len({len(ids) for ids in ours}) > 1, "rows must end at different times"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 6), st.sampled_from([0.0, 1.0]))
def test_a_completion_does_not_depend_on_its_neighbours(lengths, slots, temperature):
    torch.manual_seed(0)
    model, asked = MODELS["qwen2"]().eval(), prompts(lengths)
    together = complete(model, asked, slots, temperature=temperature)
    engine = SlotEngine(model, slots=1)
    for i, prompt in enumerate(asked):
        ((_, alone),) = engine.complete([(i, prompt)], 20, lambda ids: ids[-1] in ENDS, temperature)
        assert alone == together[i]


def test_candidates_of_a_question_read_its_prompt_once_and_are_those_of_readers_of_their_own(model):
    a, b = prompts([17, 9])
    asked = [a, a, b, a, b, b, b]
    read = []
    engine, alone = SlotEngine(model, slots=4), SlotEngine(model, slots=1)
    engine._read_together = lambda some, cache: read.append(len(some)) or SlotEngine._read_together(engine, some, cache)
    found = dict(engine.complete(list(enumerate(asked)), 20, lambda ids: ids[-1] in ENDS, temperature=1.0))
    for i, prompt in enumerate(asked):
        assert list(alone.complete([(i, prompt)], 20, lambda ids: ids[-1] in ENDS, 1.0)) == [(i, found[i])]
    assert read[0] == 2, "four rows of two prompts"
    assert len({tuple(found[i]) for i in (0, 1, 3)}) > 1, "candidates differ"


def test_a_cache_that_grows_keeps_what_it_holds(model):
    asked = prompts([250, 3])
    assert complete(model, asked, slots=2, budget=30) == [complete(model, [p], 1, 30)[0] for p in asked]


def test_sampled_tokens_have_the_models_probabilities():
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        expected = (logits[0] / temperature).softmax(-1)
        if top_p < 1:  # 0.64 and 0.24 make 0.88
            expected = torch.tensor([expected[0], expected[1], 0.0, 0.0]) / (expected[0] + expected[1])
        n = 4000
        rows = [Row(0, [1], uniforms(3, i, 1)) for i in range(n)]
        drawn = torch.tensor(choose(logits.expand(n, -1), rows, temperature, top_p))
        shares = torch.bincount(drawn, minlength=4) / n
        assert (shares - expected).abs().max() < 0.04  # 5 standard deviations of a share of 4000
        assert shares[expected == 0].sum() == 0


def test_a_stop_text_ends_a_completion_and_stays_in_it():
    path = REPOSITORY / "assets/tiny_base"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = Qwen2ForCausalLM.from_pretrained(path)
    asked = tokenizer(["12+7=", "3*9=27. 27-8="])["input_ids"]
    free = [s.text for s in HfSampler(model, tokenizer, 2).sample(asked, Decoding(12, 0.0, 1.0, 0, (0,)))]
    stopped = list(HfSampler(model, tokenizer, 2).sample(asked, Decoding(12, 0.0, 1.0, 0, (0,), stop=(".",))))
    assert any("." in text[:-1] for text in free)
    for sample in stopped:
        assert sample.text.endswith(".") and sample.text.count(".") == 1
        assert sample.finish_reason == "stop"


def test_what_the_engine_cannot_do_is_refused(model):
    sliding = Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=0))
    with pytest.raises(PosttrainError, match="without full attention"):
        SlotEngine(sliding, 2)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_is_measured_while_sampling_is_what_one_more_pass_finds(model, temperature):
    asked = [(i, [1 + i, 5, 9 + 2 * i][: 1 + i % 3]) for i in range(20)]  # more than two pieces of rows
    rows = list(SlotEngine(model, 20).complete_rows(asked, 12, lambda ids: ids[-1] < 9, temperature, measured=True))
    assert len(rows) == 20 and len({len(row.ids) for row in rows}) > 2
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.ids])).logits[0, len(row.prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)
        assert row.logprob == pytest.approx(log_p.gather(-1, torch.tensor(row.ids)[:, None]).sum().item(), abs=1e-3)
        assert row.entropy == pytest.approx(-(log_p.exp() * log_p).sum().item(), abs=1e-3)


def test_measuring_changes_no_sample():
    path = REPOSITORY / "assets/tiny_base"
    tokenizer, model = AutoTokenizer.from_pretrained(path), Qwen2ForCausalLM.from_pretrained(path)
    asked = list(enumerate(tokenizer(["12+7=", "3*9=27. 27-8=", "5-"])["input_ids"] * 5))
    sampler, decoding = HfSampler(model, tokenizer, 15), Decoding(12, 0.7, 0.9, 0, (tokenizer.eos_token_id,))
    plain = list(sampler.complete(asked, unheard, decoding))
    for sample, other in zip(sampler.complete_measured(asked, unheard, decoding), plain, strict=True):
        assert (sample.index, sample.text, sample.tokens) == (other.index, other.text, other.tokens)
        assert sample.logprob < 0 < sample.entropy
