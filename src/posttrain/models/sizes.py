"""What a model weighs before it is loaded, from its configuration alone."""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of a causal language model; tied ones count once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())


def cache_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes that keys and values of one token take in all layers of full attention."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_dim * dtype.itemsize
