"""An adapter merged into its base gives the same logits, whatever kind of adapter and base it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from posttrain.errors import PosttrainError
from posttrain.models import merge
from posttrain.models.rope import live_theta, rope_of

SIZES = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False),
    "llama": LlamaConfig(**SIZES),
}
ADAPTERS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "lora_and_whole_modules": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}


def make_adapter(directory: Path, config: Any, theta: float | None = None, **keys: Any) -> Path:
    """A base and an adapter that moves its logits, with the tiny tokenizer."""
    torch.manual_seed(0)
    base, adapter = directory / "base", directory / "adapter"
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(base)
    model.name_or_path = str(base)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **keys))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(adapter)
    AutoTokenizer.from_pretrained("assets/tiny_base").save_pretrained(adapter)
    rope = rope_of(config) | {"rope_theta": theta or rope_of(config)["rope_theta"]}
    record = {"run_id": "a", "prompt": "chat", "eos_token": "<|im_end|>", "rope": {"base": rope, "trained": rope}}
    (adapter / "lineage.json").write_text(json.dumps(record))
    return adapter


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_merged_logits_are_those_of_base_and_adapter(tmp_path, architecture, kind):
    adapter = make_adapter(tmp_path, CONFIGS[architecture], **ADAPTERS[kind])
    proof = merge.merge(adapter, tmp_path / "merged", "float32")
    assert max(proof.merged, proof.written) < 1e-5
    ids = torch.randint(0, SIZES["vocab_size"], (2, 9))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = merge.logits(alone, ids)
    both = merge.logits(PeftModel.from_pretrained(alone, adapter), ids)
    merged = merge.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)
    assert merge.largest(both - before) > 1e-2
    torch.testing.assert_close(merged, both, rtol=1e-4, atol=1e-5)


def test_a_merged_model_has_the_rope_its_adapter_was_trained_under(tmp_path):
    adapter = make_adapter(tmp_path, CONFIGS["qwen2"], theta=160000.0, **ADAPTERS["lora"])
    merge.merge(adapter, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert live_theta(merged) == pytest.approx(160000, rel=1e-4)


def test_a_merged_model_is_whole_and_knows_where_it_comes_from(tmp_path):
    out = tmp_path / "merged"
    proof = merge.merge(make_adapter(tmp_path, CONFIGS["qwen2"], **ADAPTERS["lora"]), out, "bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()} == {"torch.bfloat16"}
    assert 1e-5 < proof.written < 0.1  # the rounding of bfloat16
    record = json.loads((out / "lineage.json").read_text())
    assert (record["prompt"], record["merge"]["base"]) == ("chat", str(tmp_path / "base"))
    assert record["merge"]["written"] == proof.written
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == (
        AutoTokenizer.from_pretrained(out).eos_token_id
    )
    assert (out / "complete.json").is_file()
    assert not list(out.glob("*.bin"))
    with pytest.raises(PosttrainError, match="is there already"):
        merge.merge(tmp_path / "adapter", out, "float32")


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    adapter = make_adapter(tmp_path, CONFIGS["llama"], **ADAPTERS["lora"])
    monkeypatch.setattr(merge, "TOLERANCE", 0.0)
    with pytest.raises(PosttrainError, match="logits differ by"):
        merge.merge(adapter, tmp_path / "merged", "float32")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_what_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(PosttrainError, match=r"has no adapter_config\.json"):
        merge.merge(Path("assets/tiny_base"), tmp_path / "merged", "float32")
    adapter = make_adapter(tmp_path, CONFIGS["llama"], **ADAPTERS["lora"])
    (tmp_path / "base/config.json").unlink()
    with pytest.raises(PosttrainError, match=r"has no config\.json"):
        merge.merge(adapter, tmp_path / "merged", "float32")
