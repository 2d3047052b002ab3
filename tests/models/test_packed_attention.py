"""Packed examples never see each other: shown on the real path, and each way to break it must fail."""

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from posttrain.models.packed_attention import (
    PROBE_LENGTHS,
    PackingError,
    check_supported,
    miniature,
    packing_difference,
    prove_packing,
    register,
)

SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}


def model(architecture: str = "qwen2", attention: str = "varlen_sdpa"):
    register()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture](**SHAPE), attn_implementation=attention)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("attention", ["varlen_sdpa", "sdpa", "eager"])
def test_packed_logits_equal_separate_ones(architecture, attention):
    assert prove_packing(model(architecture, attention), "here") < 1e-5


@pytest.mark.parametrize("attention", ["varlen_sdpa", "sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("no boundaries", {"position_ids": None, "cu_seq_lens_q": None, "cu_seq_lens_k": None}),
        ("positions run on", {"position_ids": torch.arange(sum(PROBE_LENGTHS))[None], "cu_seq_lens_q": None}),
        (
            "a mask of ones",
            {"attention_mask": torch.ones(1, sum(PROBE_LENGTHS), dtype=torch.long), "cu_seq_lens_q": None},
        ),
    ],
)
def test_every_broken_batch_is_seen(attention, name, change):
    assert packing_difference(miniature(model(attention=attention)), change) > 1e-2


def leaky(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """Causal attention over the whole row, whatever is packed into it."""
    attend = torch.nn.functional.scaled_dot_product_attention
    output = attend(query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def test_an_attention_that_leaks_is_refused():
    AttentionInterface.register("leaky", leaky)
    AttentionMaskInterface.register("leaky", lambda *_, **__: None)
    with pytest.raises(PackingError, match="see each other under attn_implementation leaky"):
        prove_packing(model(attention="leaky"), "accelerate_configs/cpu.yaml")


def test_varlen_sdpa_refuses_layers_it_does_not_compute():
    register()
    sliding = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    small = AutoModelForCausalLM.from_config(sliding, attn_implementation="varlen_sdpa")
    with pytest.raises(PackingError, match="varlen_sdpa: has no sliding_attention"):
        check_supported(small, "here")
    check_supported(model(), "here")
    check_supported(AutoModelForCausalLM.from_config(sliding, attn_implementation="sdpa"), "here")


def test_padded_batches_give_the_same_logits_as_sdpa():
    ids = torch.randint(1, 128, (2, 9))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])
    ours, sdpa = model(attention="varlen_sdpa").eval(), model(attention="sdpa").eval()
    with torch.no_grad():
        difference = ours(ids, attention_mask=mask).logits - sdpa(ids, attention_mask=mask).logits
    assert difference[mask.bool()].abs().max() < 1e-5


def test_generation_equals_sdpa():
    ids = torch.randint(1, 128, (2, 5))
    texts = [
        model(attention=a).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        for a in ("varlen_sdpa", "sdpa")
    ]
    assert texts[0].tolist() == texts[1].tolist()


def test_gradients_of_packed_rows_equal_separate_ones():
    packed, alone = model(), model()
    lengths = [4, 6]
    ids = torch.randint(1, 128, (10,))
    ends = torch.tensor([0, 4, 10], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    logits = packed(
        ids[None], position_ids=positions, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=6, max_length_k=6
    ).logits
    logits.square().sum().backward()
    sum(alone(part[None]).logits.square().sum() for part in ids.split(lengths)).backward()
    for one, two in zip(packed.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)


def test_a_real_config_can_be_shrunk(shared_data):
    config = AutoConfig.from_pretrained(shared_data / "configs/Qwen3-4B")
    config.num_hidden_layers, config.hidden_size, config.layer_types = 3, 64, config.layer_types[:3]
    config.vocab_size = 256
    register()
    assert prove_packing(AutoModelForCausalLM.from_config(config, attn_implementation="varlen_sdpa"), "here") < 1e-5
