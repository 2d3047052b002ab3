"""The peak of a plan against the one that PyTorch's memory tracker finds on tensors without memory."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.plan.memory.activations import Batch, Precision
from posttrain.plan.memory.process import WHOLE, Sizes
from posttrain.plan.shapes import shipped

SHAPE = replace(
    shipped()["Qwen/Qwen2.5-0.5B"], layers=4, hidden=512, feed_forward=1536, heads=8, vocabulary=16_000
)  # fmt: skip
ROWS, LENGTH = 4, 512


def tracked_peak(dtype: torch.dtype, autocast: bool, attention: str, checkpointing: bool) -> int:
    """Bytes at the largest moment of two steps: forward, backward, AdamW."""
    config = AutoConfig.for_model(
        SHAPE.kind, num_hidden_layers=SHAPE.layers, hidden_size=SHAPE.hidden, intermediate_size=SHAPE.feed_forward,
        num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.key_heads, vocab_size=SHAPE.vocabulary,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer, ids = (
            torch.optim.AdamW(model.parameters(), fused=True),
            torch.zeros((ROWS, LENGTH), dtype=torch.long),
        )
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids)
        with tracker:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "dtype, autocast, attention, checkpointing",
    [
        (torch.float32, False, "sdpa", False),
        (torch.float32, True, "sdpa", False),
        (torch.bfloat16, False, "eager", False),
        (torch.float32, False, "sdpa", True),
        (torch.float32, False, "eager", True),
    ],
)
def test_the_plan_is_within_a_tenth_of_what_is_tracked(dtype, autocast, attention, checkpointing):
    sizes = Sizes(
        shape=SHAPE, parameters=SHAPE.parameters, trainable=SHAPE.parameters,
        precision=Precision(dtype.itemsize, autocast),
        batch=Batch(ROWS, LENGTH, attention, padded=False), checkpointing=checkpointing, head=WHOLE,
    )  # fmt: skip
    assert sizes.peak == pytest.approx(tracked_peak(dtype, autocast, attention, checkpointing), rel=0.1)
