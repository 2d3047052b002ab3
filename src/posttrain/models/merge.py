"""An adapter merged into its base: one model directory, proved to say what base and adapter said together."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain import jsonl, lineage
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import PosttrainError
from posttrain.models import checkpoints, loading
from posttrain.models.loading import load_model, read_checkpoint
from posttrain.models.rope import write_both_forms
from posttrain.models.source import adapter_base, check_model, check_weights

PROBE_SHAPE = (4, 64)  # rows and tokens of random ids that both models read
TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by less


class MergeError(PosttrainError):
    """An adapter that cannot be merged, or a merged model that says something else."""


@dataclass(frozen=True)
class Proof:
    """Largest differences of logits to base and adapter, merged in float32 and as written, and the largest logit."""

    merged: float
    written: float
    largest_logit: float


def merge(adapter: Path, out: Path, dtype: str) -> Proof:
    """Write `out` whole or not at all: weights of `dtype`, tokenizer, lineage; raises MergeError where logits differ.

    The sum is computed in float32. Weights written in half precision then differ by their rounding, which is reported;
    float32 ones must agree.
    """
    base = read_base(adapter)
    if out.exists():
        raise MergeError(f"{out}: is there already; choose another directory")
    probe = probe_ids(vocabulary_size(adapter))
    untouched = replace(read_checkpoint(str(adapter)), name=base)  # under the adapter's rope
    check_weights(str(adapter))
    model = PeftModel.from_pretrained(load_model(untouched, "float32"), adapter)
    expected = logits(model, probe)
    merged = model.merge_and_unload(safe_merge=True)  # raises where a weight becomes NaN
    difference = largest(logits(merged, probe) - expected)
    limit = TOLERANCE * largest(expected)
    if difference > limit:
        raise MergeError(f"{adapter}: merged logits differ by {difference:.3g}, expected at most {limit:.3g}")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save(merged.to(getattr(torch, dtype)), adapter, unfinished)
    written = largest(logits(load_model(read_checkpoint(str(unfinished)), "float32"), probe) - expected)
    if dtype == "float32" and written > limit:
        shutil.rmtree(unfinished)
        raise MergeError(f"{out}: logits read back differ by {written:.3g}, expected at most {limit:.3g}")
    proof = Proof(difference, written, largest(expected))
    finish(unfinished, out, adapter, base, proof)
    return proof


def read_base(adapter: Path) -> str:
    """The name of the adapter's base; raises MergeError or ModelError where one of the two cannot be loaded."""
    check_model(str(adapter))
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise MergeError(f"{adapter}: has no adapter_config.json; expected an adapter, such as outputs/<run>/final")
    base = adapter_base(adapter)
    check_model(base, may_be_adapter=False, needs_vocabulary=False)  # the adapter has its own
    return base


def vocabulary_size(adapter: Path) -> int:
    """How many ids the tokenizer of an adapter knows."""
    return len(open_tokenizer(adapter))


def probe_ids(size: int) -> torch.Tensor:
    """Random ids, always the same. returns: PROBE_SHAPE"""
    return torch.randint(0, size, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids on the CPU. ids: (B, T)    returns: (B, T, V) float32"""
    model.eval()
    return model(input_ids=ids.to(model.device)).logits.float().cpu()


def largest(values: torch.Tensor) -> float:
    return values.abs().max().item()


def save(model: PreTrainedModel, adapter: Path, out: Path) -> None:
    """Weights as safetensors, tokenizer, and a generation config that stops where the adapter was trained to."""
    tokenizer = open_tokenizer(adapter)
    record = lineage.read_lineage(adapter)
    if record is None or record.get("eos_token"):
        loading.set_generation_end(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_both_forms(out)


def finish(unfinished: Path, out: Path, adapter: Path, base: str, proof: Proof) -> None:
    """The adapter's lineage with a word on the merge, the mark of completeness, and the final name."""
    record = lineage.read_lineage(adapter)
    if record is not None:
        source: dict[str, Any] = {"adapter": str(adapter), "base": base, "merged": lineage.now(), **vars(proof)}
        jsonl.write_sealed(unfinished / lineage.LINEAGE_FILE, {**record, "merge": source})
    checkpoints.mark_complete(unfinished)
    unfinished.rename(out)
