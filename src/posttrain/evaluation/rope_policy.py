"""Choose the rotary base of an evaluation: the base model's own, unless the loss is lower with the trained one.

A model trained under a longer base mostly answers short questions better under its first one, but not always, and
nothing in the weights says so; teacher-forced loss on validation rows of the run does.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import lineage
from posttrain.console import say, warn
from posttrain.data.encode import Encoding, load_split
from posttrain.data.manifest import split_path
from posttrain.data.rows import read_parquet
from posttrain.models import loading
from posttrain.models.rope import base_rope, override, rope_of

ROWS = 64  # validation rows that decide
VALIDATION = "validation"


@dataclass(frozen=True)
class RopeChoice:
    """What is in force, and why. `used` is `base` or `trained`; losses (nats per token) are there where measured."""

    used: str
    reason: str
    losses: dict[str, float] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)  # of the checkpoint's own config, as keys of a recipe


def settle(policy: str, checkpoint: loading.Checkpoint, dtype: str) -> RopeChoice:
    """Decide by `policy` (`auto`, `base`, `trained`), and put the values into the checkpoint's config."""
    trained = rope_of(checkpoint.config.get_text_config())
    ropes = {"base": base_rope(checkpoint.name, trained), "trained": trained}
    if ropes["base"] == trained:
        return RopeChoice("base", "trained under the base model's own values")
    choice = RopeChoice(policy, f"--rope {policy}") if policy != "auto" else decide(checkpoint, ropes, dtype)
    use(checkpoint, ropes[choice.used])
    if choice.used == "base":
        own = {key: ropes["base"][key] for key in ("rope_theta", "max_position_embeddings")}
        choice = replace(choice, overrides=own)
    theta, own = trained["rope_theta"], ropes["base"]["rope_theta"]
    change = f"restored rope_theta {theta:g} → {own:g}" if choice.used == "base" else f"kept rope_theta {theta:g}"
    say(f"{checkpoint.name}: {change}: {choice.reason}")
    return choice


def use(checkpoint: loading.Checkpoint, rope: dict[str, Any]) -> None:
    override(checkpoint.config, rope["rope_theta"], rope["max_position_embeddings"], checkpoint.name)


def decide(checkpoint: loading.Checkpoint, ropes: dict[str, dict[str, Any]], dtype: str) -> RopeChoice:
    """The values of lower loss on the run's validation rows; without such rows, the ones that training saw."""
    record = lineage.read_lineage(checkpoint.name)
    rows = validation_rows(record, checkpoint.tokenizer) if record else None
    if rows is None:
        if record is None:
            return RopeChoice("base", "no training step was taken under the changed values")
        reason = "its run's validation rows are not here to measure by"
        warn(f"{checkpoint.name}: {reason}; --rope base would restore")
        return RopeChoice("trained", reason)
    losses = {}
    for name, rope in ropes.items():
        use(checkpoint, rope)
        losses[name] = round(mean_loss(loading.load_model(checkpoint, dtype), rows), 4)
    used = "base" if losses["base"] <= losses["trained"] else "trained"
    other = "trained" if used == "base" else "base"
    return RopeChoice(used, f"validation loss {losses[used]:.2f} against {losses[other]:.2f}", losses)


def validation_rows(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """Ids and labels of some validation rows of a run, None where they are not there, or others than it saw."""
    trained_on = record["inputs"]["dataset"]
    directory = Path(trained_on["path"])
    manifest = lineage.read_json(directory / "manifest.json")
    if manifest is None or lineage.digest(manifest) != trained_on["manifest"]:
        return None
    if f"{VALIDATION}.parquet" not in manifest["files"]:
        return None
    path = split_path(directory, manifest, VALIDATION)
    if not all(row.get("completion") or row.get("text") for row in read_parquet(path)):
        return None
    eos = record.get("eos_token", tokenizer.eos_token)
    encoding = Encoding(record["prompt"], eos, record["rope"]["trained"]["max_position_embeddings"], "drop")
    return load_split(path, tokenizer, encoding, ROWS)[0]


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, rows: Dataset) -> float:
    """Cross entropy per completion token, in nats."""
    total, tokens = 0.0, 0
    for row in rows.with_format("torch", device=model.device):
        n = int((row["labels"][1:] != -100).sum())
        total += n * float(model(input_ids=row["input_ids"][None], labels=row["labels"][None], use_cache=False).loss)
        tokens += n
    return total / tokens
