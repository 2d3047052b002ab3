"""Weights in the layout of the CPU's matrix kernels, for models that only sample.

oneDNN brings a plain weight into its own layout again at every product, and MKL's products in float32 are slow on
processors of other makers. `pack_weights` does it once: the packed weight replaces the plain one, and only an input
embedding that is tied to the head is kept beside it. Such a model cannot train or be saved, and says so.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from posttrain.errors import PosttrainError

GATED = (LlamaMLP, Qwen2MLP, Qwen3MLP)  # down(silu(gate(x)) * up(x))
ROWS = 64  # for which the layout is chosen; it serves any number


class PackedLinear(nn.Module):
    """A linear layer without gradient whose weight oneDNN reads as it lies. (..., in) → (..., out)"""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """`activation` is one that oneDNN applies to sums before they are rounded, such as `swish`."""
        _refuse_gradient(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product of this layer's output and `factor`, rounded once."""
        _refuse_gradient(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, self.bias, "mul")

    def _save_to_state_dict(self, *_: Any) -> None:
        raise PosttrainError("a model with packed weights only samples; load it again to save or train it")


class PackedMlp(nn.Module):
    """A gated feed-forward block of packed layers: gate, activation and product take two passes rather than four."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj.times(x, self.gate_proj(x, "swish")))


def pack_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its linear layers packed where this is a CPU that computes in their dtype; on a GPU, untouched.

    Greedy tokens in float32 stay the same; in bfloat16 the feed-forward blocks round less often.
    """
    if model.device.type != "cpu" or not packs(model.dtype):
        return model
    for name in _linear_layers(model):
        model.set_submodule(name, PackedLinear(model.get_submodule(name)))
    for name, module in list(model.named_modules()):
        if isinstance(module, GATED) and module.config.hidden_act == "silu" and _all_packed(module):
            model.set_submodule(name, PackedMlp(module))
    return model


def packs(dtype: torch.dtype) -> bool:
    """Whether this CPU has kernels for packed weights of a dtype."""
    half = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (dtype == torch.float32 and torch.backends.mkldnn.is_available()) or (dtype == torch.bfloat16 and half)


def is_packed(model: nn.Module) -> bool:
    """Whether `pack_weights` has changed the model."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of plain linear layers; in an adapter only the base of plain LoRA, which it just calls."""
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    bases = {f"{name}.base_layer" for name, x in adapted.items() if type(x) is LoraLinear and not x.lora_variant}
    return [name for name in linear if name in bases or not any(name.startswith(f"{a}.") for a in adapted)]


def _all_packed(mlp: nn.Module) -> bool:
    return all(isinstance(layer, PackedLinear) for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise PosttrainError("a model with packed weights only samples; load it again to save or train it")
