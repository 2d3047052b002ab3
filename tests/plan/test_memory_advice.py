"""The estimate of a run's memory: closed forms, activations as autograd saves them, advice that fits the run."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import LORA, build
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, TrainerCallback

from posttrain.errors import PosttrainError
from posttrain.plan.memory.activations import Batch, Precision, layer_bytes
from posttrain.plan.memory.advice import advice, knobs
from posttrain.plan.memory.live import sizes_of
from posttrain.plan.memory.process import FUSED, GIB, PIECES, TILED, WHOLE, Sizes, largest_batch
from posttrain.plan.shapes import shape_of, shipped

SHAPE = shipped()["Qwen/Qwen2.5-1.5B"]
# Qwen2.5-1.5B, full fine-tuning under bf16 autocast over float32 weights.
RUN = Sizes(
    shape=SHAPE, parameters=SHAPE.parameters, trainable=SHAPE.parameters, precision=Precision(4, True),
    batch=Batch(8, 4096, "flash_attention_2", packed=True, padded=False), accumulation=2,
)  # fmt: skip
COUNT = 1_543_714_304
CONFIG = "zero2.yaml"


def changed(sizes, **batch):
    return replace(sizes, batch=replace(sizes.batch, **batch))


def test_weights_gradients_and_optimizer_state_are_bytes_times_values():
    assert RUN.weights == COUNT * 4
    assert RUN.gradients == COUNT * 4
    assert RUN.optimizer == COUNT * 8
    inner = COUNT - SHAPE.embedding  # bitsandbytes is told to keep moments of an embedding in float32
    assert replace(RUN, optim="adamw_bnb_8bit").optimizer == inner * 2 + SHAPE.embedding * 8
    assert replace(RUN, optim="lion_8bit").optimizer == inner + SHAPE.embedding * 4
    frozen = replace(RUN, optim="adamw_bnb_8bit", trainable=SHAPE.layers * SHAPE.layer)
    assert frozen.optimizer == SHAPE.layers * SHAPE.layer * 2
    sharded = replace(RUN, optim="adamw_bnb_8bit", sharding="zero2")  # whose masters are float32 once, not four times
    assert sharded.optimizer == inner * 2 + SHAPE.embedding * 8 + COUNT * 4
    assert replace(RUN, precision=Precision(2, False)).gradients == COUNT * 2
    assert replace(RUN, precision=Precision(2, False)).optimizer == COUNT * 4
    assert replace(RUN, offloaded=True).optimizer == 0


def test_shards_divide_what_is_theirs():
    """ZeRO: 2 bytes of weights and of gradients, 12 of masters and moments; FSDP2 keeps float32 and gathers layers."""
    eight = {"processes": 8}
    zero1, zero2, zero3 = (replace(RUN, sharding=f"zero{stage}", **eight) for stage in (1, 2, 3))
    assert [z.weights / COUNT for z in (zero1, zero2, zero3)] == [2, 2, 0.25]
    assert [z.gradients / COUNT for z in (zero1, zero2, zero3)] == [2, 0.25, 0.25]
    assert {z.optimizer / COUNT for z in (zero1, zero2, zero3)} == {12 / 8}
    fsdp, ddp = replace(RUN, sharding="fsdp", **eight), replace(RUN, sharding="ddp", **eight)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (COUNT / 2, COUNT / 2, COUNT)
    assert fsdp.exchange == 2 * (2 * SHAPE.layer + SHAPE.embedding) and fsdp.casts == 0
    assert (ddp.weights, ddp.exchange) == (RUN.weights, RUN.gradients)


def test_activations_are_those_of_the_formula():
    per_layer = 16 * 1536 + 6 * 1536 + 2 * (4 * 1536 + 2 * 256 + 4 * 8960) + 4 * 12
    assert RUN.saved == 8 * 4096 * 28 * per_layer
    assert replace(RUN, checkpointing=True).saved == 8 * 4096 * 28 * 4 * 1536
    assert replace(RUN, checkpointing=True).work - RUN.work == 8 * 4096 * per_layer
    assert replace(RUN, head=WHOLE).loss == 8 * 4096 * 151936 * 12
    gradients = 4 * (151936 * 1536 + 8 * 4096 * 1536)  # of the head and of its input, in float32
    tile = 4096 * 32768
    assert RUN.loss == gradients + 3 * 2 * tile
    assert replace(RUN, head=TILED).loss == gradients + (2 + 7.25 * 4) * tile
    assert replace(RUN, head=PIECES).loss == gradients + (2 + 7 * 4) * 2**24
    eager = replace(changed(RUN, packed=False, attention="eager"))
    scores = 8 * 4096 * 28 * (12 * 4096 * 6 + 2 * 2 * (1536 - 256) - 4 * 12)
    assert eager.saved - RUN.saved == scores + 8 * 4096 * 4096 * 2  # and a mask that all layers share


@pytest.mark.parametrize(
    "dtype, autocast", [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config_class", [Qwen2Config, LlamaConfig, Qwen3Config])
def test_a_layer_saves_what_the_formula_says(config_class, attention, dtype, autocast):
    config = config_class(
        vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip

    def saved(layers: int) -> int:
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=getattr(torch, dtype))
        model = model.model.train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice
        copies = (
            sum(parameter.numel() for parameter in model.layers.parameters()) * 2
            if autocast and dtype == "float32"
            else 0
        )

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(input_ids=torch.zeros((2, 64), dtype=torch.long), use_cache=False)
        return sum(storage.nbytes() for storage in storages.values()) - copies

    precision = Precision(2 if dtype == "bfloat16" else 4, autocast)
    batch = Batch(2, 64, attention, padded=False)
    expected = batch.tokens * layer_bytes(shape_of(config.to_dict(), "test"), precision, batch)
    assert saved(2) - saved(1) == pytest.approx(expected, rel=0.02)


def test_the_message_names_three_knobs_of_this_run_with_their_savings():
    text = advice(RUN, CONFIG, device_bytes=80 * GIB)
    head, *lines = text.split("\n       ")
    assert "on a device of 80.0 GiB" in head
    assert "weights 8.6 GiB, gradients 5.8 GiB, optimizer state 11.5 GiB, activations of 8 × up to 4096 tokens" in head
    assert [line.split("GiB  ")[1] for line in lines] == [
        "zero2.yaml: dynamo_config.gradient_checkpointing: true (computes forward twice)",
        "per_device_train_batch_size: 4 and gradient_accumulation_steps: 4 (the same gradient)",
        "max_length: 2048 (longer rows are left out)",
    ]


def test_what_is_on_already_is_not_advised():
    small = changed(replace(RUN, checkpointing=True), rows=1, length=512)
    named = [knob.setting for knob in knobs(small, CONFIG)]
    assert named[0].startswith("use_peft: true") and named[1] == "optim: adamw_bnb_8bit"
    assert not [setting for setting in named if "checkpointing" in setting or "batch_size" in setting]
    lora = replace(small, adapter=True, trainable=16 * SHAPE.adaptable)
    assert knobs(lora, CONFIG)[0].setting == "load_in_4bit: true (QLoRA)"
    assert not [knob for knob in knobs(lora, CONFIG) if "use_peft" in knob.setting or "optim" in knob.setting]


@given(
    st.builds(
        replace, st.just(RUN), batch=st.builds(
            Batch, st.integers(1, 64), st.integers(2, 8192), st.sampled_from(["sdpa", "eager", "varlen_sdpa"]),
            st.booleans(),
        ),
        checkpointing=st.booleans(), head=st.sampled_from([FUSED, TILED, PIECES, WHOLE]), adapter=st.booleans(),
        optim=st.sampled_from(["adamw_torch", "sgd", "adafactor", "paged_adamw_8bit"]),
        sharding=st.sampled_from(["none", "zero2", "fsdp"]), processes=st.integers(1, 8),
        precision=st.builds(Precision, st.sampled_from([0.5, 2, 4]), st.booleans()), accumulation=st.integers(1, 8),
    ),
)  # fmt: skip
def test_knobs_save_a_part_of_the_whole_and_come_in_order_and_more_rows_never_need_less(sizes):
    savings = [knob.saves for knob in knobs(sizes, CONFIG)]
    assert savings == sorted(savings, reverse=True)
    assert all(0 < saves < sizes.total for saves in savings)
    assert len(advice(sizes, CONFIG, None).splitlines()) == 1 + min(3, len(savings))
    assert sizes.peak <= sizes.total <= changed(sizes, rows=sizes.batch.rows + 1).total
    usable = sizes.total * 1.5
    largest = largest_batch(sizes, usable)
    assert changed(sizes, rows=largest).total <= usable < changed(sizes, rows=largest + 1).total


def test_a_process_on_a_cpu_holds_its_libraries_and_freed_blocks_as_well():
    on_cpu = replace(RUN, runtime=GIB)
    more = GIB + 0.6 * (RUN.saved + RUN.loss)
    assert on_cpu.peak == pytest.approx(RUN.peak + more) and on_cpu.total == pytest.approx(RUN.total + more)
    assert RUN.kept == 0 and sum(on_cpu.parts.values()) - sum(RUN.parts.values()) == pytest.approx(more)


def test_at_its_end_a_backward_pass_holds_a_tied_embeddings_gradient_twice_and_what_gloo_copies():
    few = changed(replace(RUN, head=TILED, runtime=GIB, accumulation=1), rows=1, length=8)
    after_casts = few.gradients - few.casts  # autocast's copies are of the forward pass
    assert few.shape.tied and few.at_end == after_casts + 4 * SHAPE.embedding
    assert replace(few, sharding="ddp", processes=2).at_end == after_casts + 2 * 4 * SHAPE.embedding
    assert replace(few, adapter=True).at_end == after_casts + few.work
    assert few.peak == few.held + few.kept + max(few.at_end, few.saved + few.loss)
    assert few.least(certain_rows=False) == few.held + few.at_end  # autocast's copies and all gradients never meet
    assert replace(few, accumulation=2).least(certain_rows=False) == few.held + few.gradients


def test_halving_the_batch_keeps_the_examples_of_a_step():
    (knob,) = [k for k in knobs(changed(RUN, rows=6), CONFIG) if "batch_size" in k.setting]
    assert "per_device_train_batch_size: 3 and gradient_accumulation_steps: 4" in knob.setting


class RunsOut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")


def test_a_run_that_is_out_of_memory_says_what_would_help(models, tmp_path):
    trainer = build(models / "qwen3", tmp_path, {"use_peft": False}, max_length=64)
    trainer.add_callback(RunsOut)
    sizes = sizes_of(trainer)
    assert sizes.parameters == sizes.trainable == trainer.model.num_parameters() == sizes.shape.parameters
    assert (sizes.precision.weight, sizes.batch.length, sizes.shape.layers, sizes.shape.key) == (4, 64, 3, 16)
    with pytest.raises(PosttrainError, match=r"per_device_train_batch_size: 2 and[\s\S]*Tried to allocate 9\.00 GiB"):
        trainer.train()


def test_quantised_weights_are_half_a_byte(models, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes = sizes_of(build(models / "llama", tmp_path, LORA | {"load_in_4bit": True}))
    assert sizes.adapter and sizes.trainable < sizes.parameters / 2
    assert 0.5 < sizes.precision.weight < 4
