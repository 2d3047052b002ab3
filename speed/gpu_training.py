"""The slices of speed/gpu_suite.py that train: rates, memory beside the plan, and the loss head alone."""

import gc
import tempfile
import time
from typing import Any

import torch
from bench_sft import tokenizer
from datasets import Dataset
from gpu_world import Skip, World
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.utils import add_fused_lm_head, get_peak_flops

from posttrain.methods.sft import RecipeTrainer
from posttrain.models import packed_attention
from posttrain.plan.memory.live import sizes_of

# What decides a run's memory: checkpointing, adapter, optimizer, dtype of the weights, by what to divide the tokens
SETTINGS = [
    (checkpointing, adapter, optimizer, dtype, share)
    for checkpointing in (False, True)
    for adapter, optimizer, dtype in (
        (False, "adamw_torch_fused", torch.float32),
        (False, "adamw_torch_fused", torch.bfloat16),
        (True, "adamw_torch_fused", torch.bfloat16),
    )
    for share in (1, 2)
]


class Clock(TrainerCallback):
    """Wall seconds of the steps after the warm-up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.marks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.world.synchronize()
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of one step, on average."""
        steps = self.marks[self.world.shape.warm_up - 1 :]
        return (steps[-1] - steps[0]) / (len(steps) - 1)


def train(
    world: World, kind: type[SFTTrainer], data: Dataset, model: Any, batch: int, checkpointing: bool, **extra: Any
) -> tuple[Any, Clock]:
    """Train the shape's steps; the trainer and its clock."""
    steps = extra.pop("max_steps", world.shape.warm_up + world.shape.steps)
    adapter = extra.pop("peft_config", None)
    clock = Clock(world)
    with tempfile.TemporaryDirectory() as directory:
        arguments = SFTConfig(
            output_dir=directory, per_device_train_batch_size=batch, max_steps=steps, logging_steps=10**6,
            save_strategy="no", bf16=world.cuda, use_cpu=not world.cuda, gradient_checkpointing=checkpointing,
            learning_rate=1e-5, report_to="none", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential", **{"max_length": world.shape.length, **extra},
        )  # fmt: skip
        trainer = kind(
            model=model, args=arguments, train_dataset=data, processing_class=tokenizer(), callbacks=[clock],
            peft_config=adapter,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer, clock


def packed_rows(world: World) -> Dataset:
    return pack_dataset(world.documents(), world.shape.length, "bfd").with_format("numpy")


def flops_of(world: World, lengths: list[int]) -> float:
    """Operations of a training step on documents of these lengths: matrices and causal attention, three passes."""
    shape, head = world.shape, world.shape.hidden // world.shape.heads
    wide = shape.hidden * (2 * shape.hidden + 2 * shape.key_heads * head + 3 * shape.feed_forward)
    matrices = 2 * (shape.layers * wide + shape.hidden * shape.vocabulary) * sum(lengths)
    attention = 2 * shape.layers * shape.hidden * sum(n * n for n in lengths)  # half of two products over n × n
    return 3 * (matrices + attention)


def rates(world: World, data: Dataset, batch: int, clock: Clock, before: int) -> dict[str, Any]:
    """Tokens a second, share of the peak, and memory above what weights alone took."""
    rows = data.select(range(batch * world.shape.warm_up, batch * (world.shape.warm_up + world.shape.steps)))
    packed = "seq_lengths" in rows.column_names
    lengths = [int(n) for row in rows["seq_lengths"] for n in row] if packed else list(map(len, rows["input_ids"]))
    per_step, flops = sum(lengths) / world.shape.steps, flops_of(world, lengths) / world.shape.steps
    most = get_peak_flops(torch.cuda.get_device_name(), "bfloat16") if world.cuda else None
    return {
        "tokens_per_second": round(per_step / clock.seconds),
        "tflops": round(flops / clock.seconds / 1e12, 1),
        "mfu": round(flops / clock.seconds / most, 4) if most else None,
        "seconds_per_step": round(clock.seconds, 4),
        "tokens_per_step": round(per_step),
        "peak_bytes": world.peak_memory(),
        "bytes_before": before,
    }


def packed(world: World, attention: str, checkpointing: bool) -> dict[str, Any]:
    """Our trainer on packed rows, float32 masters under bfloat16 autocast."""
    data, batch, before = packed_rows(world), world.shape.tokens // world.shape.length, world.start_memory()
    model = world.model(attention)
    trainer, clock = train(world, RecipeTrainer, data, model, batch, checkpointing, packing=True)
    return {
        **rates(world, data, batch, clock, before),
        "planned_peak_bytes": round(sizes_of(trainer).peak),
        "idle_share": idle(world, trainer),
    }


def example_by_example(world: World) -> dict[str, Any]:
    """`varlen_sdpa` without PyTorch's kernel for packed rows: a call of attention for each example."""
    packed_attention.kernel_dtype = lambda query: None  # in this process alone
    return packed(world, packed_attention.NAME, False)


def trl(world: World, attention: str, rows: int | None) -> dict[str, Any]:
    """TRL's own trainer on the same rows, with its default of checkpointing; `rows` of a micro-batch, ours without."""
    data, before = packed_rows(world), world.start_memory()
    batch = rows or world.shape.tokens // world.shape.length
    _, clock = train(world, SFTTrainer, data, world.model(attention), batch, True, packing=True)
    return rates(world, data, batch, clock, before)


def padded(world: World) -> dict[str, Any]:
    """Our trainer on documents as they are, as many to a padded batch as packed rows to another: useful tokens."""
    data, before = world.documents().with_format("numpy"), world.start_memory()
    batch = world.shape.tokens // world.shape.length
    _, clock = train(world, RecipeTrainer, data, world.model("sdpa"), batch, False)
    return rates(world, data, batch, clock, before)


def idle(world: World, trainer: Any) -> float | None:
    """Share of a step in which the GPU computes nothing; None on a CPU."""
    if not world.cuda:
        return None
    from torch.profiler import ProfilerActivity, profile

    inputs = next(iter(trainer.get_train_dataloader()))

    def step() -> None:
        trainer.model.zero_grad()  # or gradients of the step before stand beside this step's activations
        trainer.training_step(trainer.model, dict(inputs))

    step()
    world.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        began = time.perf_counter()
        for _ in range(3):
            step()
        world.synchronize()
        wall = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in recorded.key_averages()) / 1e6
    return round(max(0.0, 1 - busy / wall), 4)


def head(world: World) -> dict[str, Any]:
    """TRL's fused head, forward and backward, by the three bare products of matrices of its size."""
    shape, tokens = world.shape, world.shape.tokens // 2
    model = world.model("sdpa", torch.bfloat16, layers=0)
    add_fused_lm_head(model)
    hidden = torch.randn(1, tokens, shape.hidden, dtype=torch.bfloat16, device=world.device, requires_grad=True)
    labels = torch.randint(0, shape.vocabulary, (1, tokens), device=world.device)
    weight = model.get_output_embeddings().weight

    def fused() -> None:
        model(inputs_embeds=hidden, labels=labels, fused_lm_head=True).loss.backward()

    def bare() -> None:
        logits = hidden[0] @ weight.T
        torch.autograd.grad(logits, (hidden, weight), logits)

    products = world.seconds(bare)
    before = world.start_memory()
    seconds, peak = world.seconds(fused), world.peak_memory()
    above = None if peak is None else peak - before
    return {
        "tokens": tokens,
        "seconds_a_pass": seconds,
        "by_products": round(seconds / products, 2),
        "bytes_above": above,
    }


def plans(world: World) -> dict[str, Any]:
    """The plan's peak beside the allocator's, for twelve settings; 0.1 is a plan 10 % above."""
    if not world.cuda:
        raise Skip("the allocator's peak is known on a GPU alone")
    data, found = packed_rows(world), []
    for checkpointing, adapter, optimizer, dtype, share in SETTINGS:
        batch = max(1, world.shape.tokens // world.shape.length // share)
        gc.collect()  # the trainer before is in circles of references, and its weights would count
        world.start_memory()
        # After three steps the optimizer's states are whole.
        extra: dict[str, Any] = {"packing": True, "optim": optimizer, "max_steps": 3}
        if adapter:
            extra["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        trainer, _ = train(world, RecipeTrainer, data, world.model("varlen_sdpa", dtype), batch, checkpointing, **extra)
        planned, peak = sizes_of(trainer).peak, world.peak_memory() or 0
        setting = {"checkpointing": checkpointing, "adapter": adapter, "optim": optimizer, "dtype": str(dtype)}
        found.append({**setting, "rows": batch, "planned": round(planned), "peak": peak, "off": planned / peak - 1})
        del trainer
    return {"settings": found}
