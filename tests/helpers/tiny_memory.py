"""Tiny models of each architecture, and a bank of random rows, for tests of the explicit memory."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROWS, LENGTH, VOCABULARY = 64, 6, 256
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config, model = KINDS[kind]
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    return model(config(vocab_size=VOCABULARY, tie_word_embeddings=True, pad_token_id=0, **shape, **heads)).eval()


def random_bank() -> torch.Tensor:
    """(ROWS, LENGTH) token ids; each third row is shorter."""
    bank = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    bank[::3, 4:] = 0
    return bank
