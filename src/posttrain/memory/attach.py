"""Hanging a memory into a frozen model: `model.memory` beside the layers, and a hook on each layer that it sees.

The model keeps its class, its parameters and `generate()`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.memory.by_token.memory import TokenMemory
from posttrain.memory.layer import ExplicitMemory, MeanMemory, MemoryConfig, MemoryFault

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def spaced_layers(layers: list[int] | int, num_layers: int) -> tuple[int, ...]:
    """Layer numbers: as listed, or so many of them at equal distances, the last layer among them."""
    if isinstance(layers, int):
        if not 1 <= layers <= num_layers:
            raise MemoryFault(f"memory_layers: {layers}: expected 1 to {num_layers}, the layers of the model")
        return tuple((i + 1) * num_layers // layers - 1 for i in range(layers))
    if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < num_layers:
        raise MemoryFault(f"memory_layers: {layers}: expected ascending numbers from 0 to {num_layers - 1}")
    return tuple(layers)


def attach(model: PreTrainedModel, config: MemoryConfig, bank: Tensor, states: Tensor | None = None) -> ExplicitMemory:
    """Freeze the model and hang a memory into it as `model.memory`, in float32; raises where it cannot have one.

    states: (N, D) of the bank's rows, which a memory that reads tokens finds them by
    """
    if model.config.model_type not in ARCHITECTURES:
        raise MemoryFault(f"{model.config.model_type}: a memory can be attached to {', '.join(ARCHITECTURES)}")
    if hasattr(model, "memory"):
        raise MemoryFault(f"{type(model).__name__} already has a memory; load the model again")
    if bank.shape != (config.knowledge_num, config.knowledge_length):
        raise MemoryFault(f"the bank has shape {list(bank.shape)}, but the memory was made for {config}")
    model.requires_grad_(False)
    size, eps = model.config.hidden_size, model.config.rms_norm_eps
    if config.reading == "mean":
        memory: ExplicitMemory = MeanMemory(size, eps, config, bank)
    elif states is None or config.router_layer > config.layers[0]:
        raise MemoryFault(f"reading: tokens: needs row states, and a router_layer up to {config.layers[0]}: {config}")
    else:
        memory = TokenMemory(size, eps, config, bank, states, model.config.vocab_size)
    model.memory = memory.to(model.device).train(model.training)
    model.register_forward_pre_hook(_begin, with_kwargs=True)
    for layer in memory.hooked_layers:
        model.model.layers[layer].register_forward_hook(_hook(model, layer))
    return memory


def _begin(model: nn.Module, _inputs: Any, arguments: dict[str, Any]) -> None:
    ids, past = arguments.get("input_ids"), arguments.get("past_key_values")
    if model.memory.enabled and ids is not None:
        model.memory.begin(ids, arguments.get("attention_mask"), past is not None and past.get_seq_length() > 0)


def _hook(model: PreTrainedModel, layer: int) -> Callable[..., Tensor | None]:
    def read(decoder_layer: nn.Module, _inputs: Any, hidden: Tensor) -> Tensor | None:
        memory = model.memory
        if not memory.enabled:
            return None
        # transformers recomputes the layer's forward alone, hooks are outside of it.
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        return memory.read(layer, hidden, embedding, decoder_layer.gradient_checkpointing, head)

    return read


def freeze_report(model: PreTrainedModel) -> str:
    """What is trained and what is not, in the lines that users of the original look for."""
    counts = {trains: sum(p.numel() for p in model.parameters() if p.requires_grad == trains) for trains in (0, 1)}
    return "\n".join(
        [
            "🔒 冻结Qwen主模型参数...",
            "✅ 参数冻结完成:",
            f"  冻结参数: {counts[0] / 1e6:.2f} 百万",
            f"  可训练参数: {counts[1] / 1e6:.2f} 百万",
            f"  冻结比例: {counts[0] / (counts[0] + counts[1]):.2%}",
        ]
    )
