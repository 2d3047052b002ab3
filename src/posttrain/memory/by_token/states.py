"""What a frozen model says of sentences and questions at an early layer: hidden states, cached in a file.

A row's state is the mean over its tokens. It is computed from the row alone, so a row that changes gets another key
without training; rows that a file knows by their token ids are not computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import atomic
from posttrain.console import Progress, say
from posttrain.memory.bank.cache import BankError

BATCH = 64


@contextmanager
def lower_layers(model: PreTrainedModel, layer: int) -> Iterator[list[Tensor]]:
    """The model cut off after a decoder layer, while the block lasts; that layer's last output is in the list."""
    decoder, found = model.model, []
    whole = decoder.layers
    decoder.layers = nn.ModuleList(list(whole)[: layer + 1])
    memory = getattr(model, "memory", None)
    enabled = memory is not None and memory.enabled

    def keep(_layer: nn.Module, _inputs: object, hidden: Tensor) -> None:
        found[:] = [hidden]

    handle = whole[layer].register_forward_hook(keep)
    if enabled:
        memory.enabled = False
    try:
        yield found
    finally:
        handle.remove()
        decoder.layers = whole
        if enabled:
            memory.enabled = True


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states where the mask is set; zero where it is nowhere.  (B, S, D), (B, S) → (B, D) float32"""
    weights = mask.float()[..., None]
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@torch.inference_mode()
def row_states(model: PreTrainedModel, rows: Tensor, pad_id: int, layer: int, what: str = "row states") -> Tensor:
    """The state of each bank row, bfloat16.  rows: (n, L) token ids → (n, D)

    One pad token goes before each row, as a model's first token gathers attention and says nothing of its own.
    """
    states = torch.zeros(len(rows), model.config.hidden_size, dtype=torch.bfloat16)
    lengths = (rows != pad_id).sum(dim=1).cpu()
    order = lengths.argsort(stable=True)
    order = order[lengths[order] > 0]
    progress = Progress(what, "rows", len(order)) if len(order) > 4096 else None
    with lower_layers(model, layer) as found:
        for chosen in order.split(BATCH) if len(order) else ():
            ids = rows[chosen, : int(lengths[chosen].max())].to(model.device)
            ids = torch.cat([torch.full_like(ids[:, :1], pad_id), ids], dim=1)
            mask = ids != pad_id
            mask[:, 0] = True
            model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            states[chosen] = pooled(found[0][:, 1:], mask[:, 1:]).bfloat16().cpu()
            if progress:
                progress.advance(len(chosen))
    if progress:
        progress.close()
    return states


def write_states(path: Path, states: Tensor, rows: Tensor, layer: int) -> None:
    """Write row states beside the rows they were computed from and the number of the layer."""
    atomic.write_bytes(path, save({"states": states, "rows": rows.int()}, {"layer": str(layer)}))


def read_states(path: Path, layer: int) -> tuple[Tensor, Tensor]:
    """States (n, D) and the rows (n, L) they were computed from; raises BankError for another layer's or no file."""
    try:
        with safe_open(path, "pt") as file:
            written = int((file.metadata() or {})["layer"])
            states, rows = file.get_tensor("states"), file.get_tensor("rows").long()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BankError(f"{path}: no row states ({reason}); write them with data_prep/knowledge_keys.py") from error
    if written != layer:
        raise BankError(f"{path}: states after layer {written}, but router_layer is {layer}; write them again")
    return states, rows


def bank_states(model: PreTrainedModel, bank: Tensor, pad_id: int, layer: int, path: Path | None) -> Tensor:
    """States of all rows of a bank: those of a file where it knows the row, computed now where it does not."""
    if path is None:
        return row_states(model, bank, pad_id, layer)
    states, computed = states_of(model, bank, pad_id, layer, read_states(path, layer))
    if computed:
        say(f"{path}: knows other rows in {computed} places; their states were computed anew")
    return states


def states_of(
    model: PreTrainedModel, bank: Tensor, pad_id: int, layer: int, known: tuple[Tensor, Tensor]
) -> tuple[Tensor, int]:
    """States of all rows of a bank, and how many of them had to be computed as `known` has other rows there."""
    states, rows = known
    if rows.shape != bank.shape or states.shape[1] != model.config.hidden_size:
        raise BankError(
            f"row states of {list(rows.shape)} rows and size {states.shape[1]}; expected {list(bank.shape)} and "
            f"{model.config.hidden_size}; write them again with data_prep/knowledge_keys.py"
        )
    changed = torch.nonzero((bank.cpu() != rows).any(dim=1)).flatten()
    if len(changed):
        states = states.clone()
        states[changed] = row_states(model, bank[changed.to(bank.device)], pad_id, layer)
    return states, len(changed)
