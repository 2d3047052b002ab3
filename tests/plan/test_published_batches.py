"""Paper against practice: the largest batches that somebody measured with another trainer on a GPU of 141 GB.

Qwen2.5-Math-1.5B, weights, gradients and AdamW's moments in bfloat16, three steps of forward, backward and optimizer,
rows without padding. What that trainer's loss holds follows from its own lines, not from the results. Log-probabilities
are `logits.log_softmax(-1)` gathered at the labels, so logits and log-softmax are there. For the entropy, which is only
logged, `logits.softmax(-1)` and, for a moment, a product of the two or the terms of a `logsumexp`. That makes four; and
as nothing goes backward through the entropy, its graph keeps logits and softmax of the step before until the variable
that holds them is given the new ones: two more. All six are bfloat16. Attention is FlashAttention 2 or `eager`.
"""

from dataclasses import replace

import pytest

from posttrain.plan.devices import read_devices
from posttrain.plan.memory.activations import HALF, Batch, Precision
from posttrain.plan.memory.process import NO_HEAD, Sizes, largest_batch
from posttrain.plan.shapes import shipped

LENGTHS = (2048, 4096, 6144, 8192)
SHAPE = shipped()["Qwen/Qwen2.5-Math-1.5B"]
LOGITS = 4 + 2  # copies: logits, log-softmax, softmax, a product; and two of the step before
TRAINER = Sizes(
    shape=SHAPE, parameters=SHAPE.parameters, trainable=SHAPE.parameters, precision=Precision(HALF, False),
    batch=Batch(1, LENGTHS[0], padded=False), head=NO_HEAD, head_bytes=LOGITS * HALF * SHAPE.vocabulary,
)  # fmt: skip
PUBLISHED = {  # checkpointing, flash attention: smallest and largest of what was published for a length
    (True, True): [(31, 31), (14, 14), (10, 10), (7, 7)],
    (True, False): [(27, 27), (13, 13), (8, 8), (5, 5)],
    (False, True): [(13, 14), (6, 7), (4, 4), (3, 3)],
    (False, False): [(7, 7), (2, 2), (1, 1), (0, 0)],
}


def planned(length, checkpointing, flash, **changes):
    attention = "flash_attention_2" if flash else "eager"
    sizes = replace(TRAINER, batch=Batch(1, length, attention, padded=False), checkpointing=checkpointing, **changes)
    return largest_batch(sizes, read_devices()[0]["H200"].usable)


def close(planned, low, high):
    """Within one row, or within 15 %."""
    return low - max(1, 0.15 * low) <= planned <= high + max(1, 0.15 * high)


@pytest.mark.parametrize("checkpointing, flash", PUBLISHED)
def test_the_plan_finds_the_largest_batches_that_were_measured(checkpointing, flash):
    for length, published in zip(LENGTHS, PUBLISHED[checkpointing, flash], strict=True):
        found = planned(length, checkpointing, flash)
        assert close(found, *published), f"{length} tokens: planned {found}, published {published}"


def test_moments_in_the_hosts_memory_leave_room_for_more_rows():
    """Published: 36 rows of 2,048 tokens."""
    assert close(planned(2048, True, True, offloaded=True), 36, 36)
