"""Attention over packed rows that cannot leak between examples, and the proof that it does not.

`varlen_sdpa` calls PyTorch's causal attention once per packed example, on the boundaries that TRL's collator computes.
It is exact, and needs neither a mask of (tokens × tokens) nor another package. In half precision on a GPU it is one
call for all examples, of the FlashAttention that PyTorch brings (`torch.nn.attention.varlen`).
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from posttrain.errors import PosttrainError
from posttrain.hardware import FLASH, KERNELS

NAME = "varlen_sdpa"
HALF = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # largest logit difference, as a share of the largest logit
PROBE_LENGTHS = (7, 1, 12, 5)  # packed examples of the proof; one of a single token, as that is where masks go wrong


class PackingError(PosttrainError):
    """Packing with an attention that lets examples see each other."""


def varlen_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed example, or plain SDPA where nothing is packed.

    query: (B, heads, T, d)    key, value: (B, key heads, T, d)    cu_seq_lens_q: (examples + 1,) starts and the end
    max_length_q: tokens of the longest example    returns: (B, T, heads, d) and no weights
    B is 1 when examples are packed.
    """
    if cu_seq_lens_q is not None and not dropout and (dtype := kernel_dtype(query)):
        return by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, dtype), None
    attend = F.scaled_dot_product_attention
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": True}
    if cu_seq_lens_q is None:
        causal = attention_mask is None and query.shape[2] > 1
        output = attend(query, key, value, attn_mask=attention_mask, is_causal=causal, **options)
    else:
        lengths = cu_seq_lens_q.diff().tolist()
        pieces = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        output = torch.cat([attend(q, k, v, is_causal=True, **options) for q, k, v in pieces], dim=2)
    return output.transpose(1, 2).contiguous(), None


def kernel_dtype(query: Tensor) -> torch.dtype | None:
    """What PyTorch's kernel for packed rows computes in: half precision, also by autocast, on a GPU since Ampere."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return dtype if dtype in HALF else None


def by_kernel(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int | None, scaling: float | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Attention of all packed examples at once; the same shapes as `varlen_sdpa`'s."""
    longest = int(starts.diff().max()) if longest is None else longest
    starts = starts.to(query.device, torch.int32)
    q, k, v = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    causal = {"window_size": (-1, 0), "scale": scaling, "enable_gqa": True}
    return varlen_attn(q, k, v, starts, starts, longest, longest, **causal)[None]


def varlen_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """No mask for packed rows, whose boundaries travel as `cu_seq_lens_q`; SDPA's own mask for padded ones."""
    padded = options.get("attention_mask") is not None
    return sdpa_mask(*arguments, **options) if padded else None


def register() -> None:
    """Make `attn_implementation: varlen_sdpa` known to transformers."""
    AttentionInterface.register(NAME, varlen_sdpa)
    AttentionMaskInterface.register(NAME, varlen_mask)


def check_supported(model: PreTrainedModel, where: str) -> None:
    """Raise PackingError where a layer's attention is not the full causal one that `varlen_sdpa` computes."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) and not hasattr(config, "layer_types"):
        kinds.add("sliding_attention")
    if model.config._attn_implementation == NAME and kinds != {"full_attention"}:
        raise PackingError(
            f"{where}: attn_implementation: {NAME}: has no {', '.join(sorted(kinds - {'full_attention'}))}, which this "
            f"model uses; write sdpa or flash_attention_2"
        )


def miniature(model: PreTrainedModel, device: torch.device | str | None = None) -> PreTrainedModel:
    """Two layers of the model's own class, attention and head shape, with weights large enough to show a leak.

    Cheap, and free of how the real weights are sharded.
    """
    config = copy.deepcopy(model.config)
    attention = model.config._attn_implementation
    config._attn_implementation = attention
    config.num_hidden_layers, config.vocab_size, config.initializer_range = 2, 128, 0.1
    config.intermediate_size = config.hidden_size
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    device = torch.device(device or model.device)
    in_half = attention in FLASH or attention.startswith(KERNELS) or (attention == NAME and device.type == "cuda")
    dtype = torch.bfloat16 if in_half else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = type(model)(config)  # not from_config, which shards the weights under ZeRO-3
    return small.to(device, dtype).eval()


def packing_difference(model: PreTrainedModel, batch_changes: dict[str, Any] | None = None) -> float:
    """Largest difference between logits of packed examples and of the same examples alone, as a share of the largest.

    `batch_changes` replaces inputs of the packed batch, for tests that break it on purpose.
    """
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in PROBE_LENGTHS]
    ends = torch.tensor([0, *PROBE_LENGTHS]).cumsum(0).to(torch.int32)
    packed: dict[str, Any] = {
        "input_ids": torch.cat(examples)[None],
        "position_ids": torch.cat([torch.arange(n) for n in PROBE_LENGTHS])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(PROBE_LENGTHS),
        "max_length_k": max(PROBE_LENGTHS),
    }
    packed |= batch_changes or {}
    packed = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in packed.items() if v is not None}
    with torch.no_grad():
        together = model(**packed, use_cache=False).logits[0].float()
        alone = torch.cat([model(x[None].to(model.device), use_cache=False).logits[0].float() for x in examples])
    return ((together - alone).abs().max() / alone.abs().max()).item()


def prove_packing(model: PreTrainedModel, where: str, device: torch.device | str | None = None) -> float:
    """Raise PackingError unless packed examples get the logits they get alone; returns the largest difference.

    Runs once before training, on a miniature of the model with the attention in use, on the device that will train.
    """
    small = miniature(model, device)
    difference, limit = packing_difference(small), TOLERANCE[small.dtype]
    if difference > limit:
        raise PackingError(
            f"{where}: packing: true: examples of one row see each other under attn_implementation "
            f"{model.config._attn_implementation} (logits differ by {difference:.1e}, allowed {limit:.0e}); use "
            f"varlen_sdpa, sdpa or flash_attention_2 in the accelerate config, or packing: false"
        )
    return difference
