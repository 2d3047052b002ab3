"""The estimate of a run's memory: closed forms, activations as autograd saves them, advice that fits the run."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import LORA, build
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, TrainerCallback

from posttrain.errors import PosttrainError
from posttrain.plan.memory import GIB, Sizes, advice, knobs, sizes_of

# Qwen2.5-1.5B, full fine-tuning under bf16 autocast over float32 weights.
RUN = Sizes(
    parameters=1_543_714_304, trainable=1_543_714_304, weight_bytes=4, optim="adamw_torch_fused", batch=8,
    length_key="max_length", length=4096, layers=28, hidden=1536, query=1536, key=256, feed_forward=8960,
    vocabulary=151936, autocast=True, checkpointing=False, fused_head=True,
    linear=28 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)),
)  # fmt: skip
CONFIG = "zero2.yaml"


def test_weights_gradients_and_optimizer_state_are_bytes_times_values():
    assert RUN.weights == 1_543_714_304 * (4 + 2)  # and autocast's copy
    assert RUN.gradients == 1_543_714_304 * 4
    assert RUN.optimizer == 1_543_714_304 * 8
    assert replace(RUN, optim="adamw_bnb_8bit").optimizer == 1_543_714_304 * 2
    assert replace(RUN, optim="lion_8bit").optimizer == 1_543_714_304
    assert replace(RUN, weight_bytes=2, autocast=False).gradients == 1_543_714_304 * 2
    assert replace(RUN, optimizer_shards=8).optimizer == 1_543_714_304


def test_activations_are_those_of_the_formula():
    per_layer = 16 * 1536 + 6 * 1536 + 2 * (4 * 1536 + 2 * 256 + 4 * 8960)
    assert RUN.activations == 8 * 4096 * 28 * per_layer
    assert replace(RUN, checkpointing=True).activations == 8 * 4096 * (28 * 4 * 1536 + per_layer)
    logits = replace(RUN, fused_head=False).activations - RUN.activations
    assert logits == 8 * 4096 * 151936 * (2 + 8)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config_class", [Qwen2Config, LlamaConfig])
def test_a_layer_saves_what_the_formula_says(config_class, autocast):
    def saved(layers: int) -> int:
        config = config_class(
            vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").model.train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice
        copies = sum(parameter.numel() for parameter in model.layers.parameters()) * 2 if autocast else 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(input_ids=torch.zeros((2, 64), dtype=torch.long), use_cache=False)
        return sum(storage.nbytes() for storage in storages.values()) - copies

    sizes = replace(
        RUN, batch=2, length=64, layers=1, hidden=128, query=128, key=64, feed_forward=384, autocast=autocast
    )
    assert saved(2) - saved(1) == pytest.approx(sizes.activations, rel=0.02)


def test_the_message_names_three_knobs_of_this_run_with_their_savings():
    text = advice(RUN, CONFIG, accumulation=2, device_bytes=80 * GIB)
    head, *lines = text.split("\n       ")
    assert "on a device of 80.0 GiB" in head
    assert "weights 8.6 GiB, gradients 5.8 GiB, optimizer state 11.5 GiB, activations of 8 × up to 4096 tokens" in head
    assert [line.split("GiB  ")[1] for line in lines] == [
        "zero2.yaml: dynamo_config.gradient_checkpointing: true (computes forward twice)",
        "per_device_train_batch_size: 4 and gradient_accumulation_steps: 4 (the same gradient)",
        "max_length: 2048 (longer rows are left out)",
    ]


def test_what_is_on_already_is_not_advised():
    small = replace(RUN, checkpointing=True, batch=1, length=512)
    named = [knob.setting for knob in knobs(small, CONFIG, 1)]
    assert named[0].startswith("use_peft: true") and named[1] == "optim: adamw_bnb_8bit"
    assert not [setting for setting in named if "checkpointing" in setting or "batch_size" in setting]
    lora = replace(small, adapter=True, trainable=16 * RUN.linear)
    assert knobs(lora, CONFIG, 1)[0].setting == "load_in_4bit: true (QLoRA)"
    assert not [knob for knob in knobs(lora, CONFIG, 1) if "use_peft" in knob.setting or "optim" in knob.setting]


@given(
    st.builds(
        replace, st.just(RUN), batch=st.integers(1, 64), length=st.integers(2, 8192), autocast=st.booleans(),
        checkpointing=st.booleans(), fused_head=st.booleans(), adapter=st.booleans(),
        optim=st.sampled_from(["adamw_torch", "sgd", "adafactor", "paged_adamw_8bit"]),
        weight_bytes=st.sampled_from([0.5, 2, 4]),
    ),
    st.integers(1, 8),
)  # fmt: skip
def test_knobs_save_a_part_of_the_whole_and_come_in_order(sizes, accumulation):
    found = knobs(sizes, CONFIG, accumulation)
    savings = [knob.saves for knob in found]
    assert savings == sorted(savings, reverse=True)
    assert all(0 < saves < sizes.total for saves in savings)
    assert len(advice(sizes, CONFIG, accumulation, None).splitlines()) == 1 + min(3, len(found))


def test_halving_the_batch_keeps_the_examples_of_a_step():
    (knob,) = [k for k in knobs(replace(RUN, batch=6), CONFIG, 2) if "batch_size" in k.setting]
    assert "per_device_train_batch_size: 3 and gradient_accumulation_steps: 4" in knob.setting


class RunsOut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")


def test_a_run_that_is_out_of_memory_says_what_would_help(models, tmp_path):
    trainer = build(models / "qwen3", tmp_path, {"use_peft": False}, max_length=64)
    trainer.add_callback(RunsOut)
    sizes = sizes_of(trainer)
    assert sizes.parameters == sizes.trainable == trainer.model.num_parameters()
    assert (sizes.weight_bytes, sizes.length, sizes.layers, sizes.key) == (4, 64, 3, 16)
    with pytest.raises(PosttrainError, match=r"per_device_train_batch_size: 2 and[\s\S]*Tried to allocate 9\.00 GiB"):
        trainer.train()


def test_quantised_weights_are_half_a_byte(models, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes = sizes_of(build(models / "llama", tmp_path, LORA | {"load_in_4bit": True}))
    assert sizes.adapter and sizes.trainable < sizes.parameters / 2
    assert 0.5 < sizes.weight_bytes < 4
