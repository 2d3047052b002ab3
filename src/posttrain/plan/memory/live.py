"""The sizes of a run whose model is loaded, read from its trainer."""

from typing import Any

from posttrain.plan.memory.activations import Batch, Precision
from posttrain.plan.memory.process import FUSED, WHOLE, Sizes
from posttrain.plan.shapes import shape_of


def bytes_per_value(parameter: Any) -> float:
    return parameter.element_size() / (2 if type(parameter).__name__ == "Params4bit" else 1)


def sharding_of(trainer: Any) -> str:
    """What processes share, by the accelerator: none, ddp, fsdp, zero1, zero2 or zero3."""
    state = trainer.accelerator.state
    if trainer.is_deepspeed_enabled:
        return f"zero{state.deepspeed_plugin.zero_stage}" if state.deepspeed_plugin.zero_stage else "ddp"
    return "fsdp" if trainer.is_fsdp_enabled else "ddp" if state.num_processes > 1 else "none"


def sizes_of(trainer: Any) -> Sizes:
    """The sizes of a run of one of TRL's trainers; raises ShapeError for an architecture without a plan."""
    from posttrain.models.trainable import size

    model = trainer.accelerator.unwrap_model(trainer.model)
    config, arguments = model.config.get_text_config(), trainer.args
    parameters = list(model.parameters())
    count, adapter = sum(map(size, parameters)), hasattr(model, "peft_config")
    base = [p for p in parameters if not (adapter and p.requires_grad)]  # an adapter is float32 over whatever base
    key = "max_length" if hasattr(arguments, "max_length") else "max_completion_length"
    packed = bool(getattr(arguments, "packing", False))
    return Sizes(
        shape=shape_of(config.to_dict(), str(config.name_or_path)),
        parameters=count,
        trainable=sum(size(p) for p in parameters if p.requires_grad),
        precision=Precision(
            sum(size(p) * bytes_per_value(p) for p in base) / sum(map(size, base)),
            trainer.accelerator.mixed_precision in ("bf16", "fp16"),
        ),
        batch=Batch(
            arguments.per_device_train_batch_size,
            getattr(arguments, key, None) or 0,
            config._attn_implementation,
            packed=packed,
            padded=not packed,
        ),
        optim=str(getattr(arguments.optim, "value", arguments.optim)),
        checkpointing=bool(getattr(model, "is_activation_checkpointing", False)),
        head=FUSED if getattr(arguments, "loss_type", None) == "nll" else WHOLE,
        accumulation=arguments.gradient_accumulation_steps,
        adapter=adapter,
        sharding=sharding_of(trainer),
        processes=trainer.accelerator.num_processes,
        length_key=key,
    )
