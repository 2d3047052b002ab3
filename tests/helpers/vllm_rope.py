"""The rotary base that vLLM uses under each override, as JSON; test_vllm_server.py runs it where vLLM is installed.

argv: a model directory, and a JSON list of overrides; the string `callable` stands for one that sets all.
"""

import json
import sys

from vllm.config import ModelConfig
from vllm.transformers_utils.config import set_default_rope_theta

FULL = {"rope_type": "default", "rope_theta": 300000.0}


def set_all(config):
    config.rope_parameters, config.max_position_embeddings = FULL, 32768
    return config


def used(model: str, override: object) -> object:
    """[theta, longest sequence], or the name of the error."""
    try:
        built = ModelConfig(model=model, hf_overrides=set_all if override == "callable" else override, dtype="float32")
        set_default_rope_theta(built.hf_config, default_theta=1000000)  # the first thing its Qwen2 model does
    except Exception as error:  # pydantic wraps a KeyError in its own
        return f"{type(error).__name__}: {error}"
    return [built.hf_config.rope_parameters.get("rope_theta"), built.max_model_len]


print(json.dumps([used(sys.argv[1], override) for override in json.loads(sys.argv[2])]))
