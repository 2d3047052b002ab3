"""The rotary base and the longest position: part of a checkpoint's identity, recorded nowhere but in its config.

transformers 5 keeps them in `rope_parameters`; readers before it, and vLLM in places, know only a top-level
`rope_theta` and take 10000 where it is missing. So both forms are written, and a file whose forms disagree is refused.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain import atomic, digests, jsonl
from posttrain.errors import PosttrainError
from posttrain.lineage import ROPE, read_lineage
from posttrain.models.source import RESTORE

LOCK_FILE = "rope_lock.json"
DEFAULT_THETA = 10000.0  # what every reader takes where a config names none
SAME = 1e-4  # relative; a base read back from float32 frequencies
CONFIG = {"max_position_embeddings": int}
FILES = ("config.json", "tokenizer_config.json")  # rewritten; everything else is linked


class RopeError(PosttrainError):
    """A config whose two forms of the rotary base disagree, or a model that runs with another base than it says."""


@dataclass(frozen=True)
class Rope:
    """Rotary base, scaling and longest position, and which form of the file named the base."""

    rope_theta: float
    rope_type: str
    max_position_embeddings: int
    source: str  # `rope_parameters`, `rope_theta`, `both` or `default`


def rope_type(parameters: dict[str, Any]) -> Any:
    """The type of scaling that a config names, by its key of today or of before."""
    return parameters.get("rope_type", parameters.get("type", "default"))


def read_rope(directory: Path) -> Rope:
    """What a directory's config.json says, read as JSON; raises RopeError where its two forms disagree."""
    path = directory / "config.json"
    if not path.is_file():
        raise RopeError(f"{path}: missing; expected a model directory")
    config = jsonl.read_object(path, CONFIG, RESTORE) or {}
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if fault := jsonl.mismatch(nested, {}) or jsonl.mismatch(rope_type(nested), str):
        raise RopeError(f"{path}: rope_parameters: {fault}; {RESTORE}")
    top, inner = config.get("rope_theta"), nested.get("rope_theta")
    if fault := jsonl.mismatch([top, inner], [(float, type(None))]):
        raise RopeError(f"{path}: rope_theta{fault}; {RESTORE}")
    if top is not None and inner is not None and top != inner:
        raise RopeError(f"{path}: rope_theta is {top} at the top but {inner} in rope_parameters; make them agree")
    source = "both" if None not in (top, inner) else "rope_parameters" if inner is not None else "rope_theta"
    theta = inner if inner is not None else top
    return Rope(
        rope_theta=float(DEFAULT_THETA if theta is None else theta),
        rope_type=rope_type(nested),
        max_position_embeddings=config["max_position_embeddings"],
        source="default" if theta is None else source,
    )


def rope_of(config: Any) -> dict[str, Any]:
    """Rotary base, type and longest position of a loaded config."""
    parameters = dict(config.rope_parameters or {})
    return {
        "rope_theta": parameters.get("rope_theta"),
        "rope_type": parameters.get("rope_type", "default"),
        "max_position_embeddings": config.max_position_embeddings,
    }


def base_rope(name: str, now: dict[str, Any]) -> dict[str, Any]:
    """The base model's own values: by the lineage, or by what `extend` replaced, else `now`, those of its config."""
    if record := read_lineage(name):
        return record["rope"]["base"]
    if lock := jsonl.read_object(Path(name) / LOCK_FILE, {"before": ROPE}, "extend the model again"):
        return {key: lock["before"][key] for key in now}
    return now


def base_values(directory: Path) -> dict[str, Any]:
    """Recipe keys that put back the base model's own values where a model directory has others."""
    said = read_rope(directory)
    now = {key: getattr(said, key) for key in ("rope_theta", "rope_type", "max_position_embeddings")}
    own = base_rope(str(directory), now)
    return {} if own == now else {key: own[key] for key in ("rope_theta", "max_position_embeddings")}


def override(config: Any, theta: float | None, positions: int | None, where: str) -> None:
    """Give a loaded config another base or longest position, before a model is built from it; None keeps either.

    The whole dictionary is set: transformers 5 ignores `config.rope_theta = …` in silence, and a dictionary without
    its type or its base is an error or another default.
    """
    text = config.get_text_config()
    now = rope_of(text)
    if theta is not None and theta != now["rope_theta"]:
        if now["rope_type"] != "default":
            raise RopeError(f"{where}: rope_theta: {theta}: the model's rope_type is {now['rope_type']!r}, not default")
        text.rope_parameters = {"rope_type": "default", "rope_theta": float(theta)}
    if positions is not None:
        text.max_position_embeddings = positions


def live_theta(model: Any) -> float | None:
    """The base that a built model really rotates by, from its frequencies; None where there are none of the usual kind.

    Frequency i of d/2 is theta^(-2i/d), so theta is the second one to the power of -d/2.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.numel() > 1:
            return float(buffer.double()[1].item() ** -buffer.numel())
    return None


def check_live(model: Any, where: str) -> None:
    """Raise RopeError where a built model rotates by another base than its config will be saved with."""
    said = rope_of(model.config.get_text_config())
    live = live_theta(model)
    if live is None or said["rope_type"] != "default":
        return
    if abs(live - said["rope_theta"]) > SAME * live:
        theta = said["rope_theta"]
        raise RopeError(f"{where}: rotates by base {live:.6g}, its config says {theta:.6g}; set it before building")


def extend(source: Path, target: Path, theta: float, positions: int, reason: str) -> None:
    """Write a copy of a model with another base and more positions; weights are linked, the original is not touched."""
    before = read_rope(source)
    if before.rope_type != "default":
        raise RopeError(f"{source}: rope_type {before.rope_type!r}: only the default type is extended")
    marked = _link_all(source, target, FILES)
    config = json.loads((source / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rope_theta": theta}
    config["max_position_embeddings"] = positions
    config.pop("rope_scaling", None)
    tokenizer = source / "tokenizer_config.json"
    if tokenizer.is_file():
        limit = {"model_max_length": positions}
        atomic.write_json(target / tokenizer.name, json.loads(tokenizer.read_text()) | limit)
    originals = {name: (source / name).read_text() for name in FILES if (source / name).is_file()}
    after = Rope(theta, "default", positions, "both")
    lock = {
        "source": str(source),
        "reason": reason,
        "before": asdict(before),
        "after": asdict(after),
        "files": originals,
    }
    jsonl.write_sealed(target / LOCK_FILE, lock)
    atomic.write_json(target / "config.json", config)  # last: a directory without it is no model
    if marked:
        digests.write_mark(target)


def restore(source: Path, target: Path) -> None:
    """Write a copy of an extended model with the files that extending replaced, byte for byte."""
    lock = source / LOCK_FILE
    if not lock.is_file():
        raise RopeError(f"{lock}: missing; only what `extend` wrote knows what it was before")
    marked = _link_all(source, target, (*FILES, LOCK_FILE))
    originals = (jsonl.read_object(lock, {"files": {str: str}}, "extend the model again") or {})["files"]
    for name in reversed(FILES):
        if name in originals:
            atomic.write_bytes(target / name, originals[name].encode())
    if marked:
        digests.write_mark(target)


def write_both_forms(directory: Path) -> None:
    """Add the top-level `rope_theta` to a config.json of transformers 5; raises RopeError on a contradiction."""
    path = directory / "config.json"
    if not path.is_file():  # an adapter has no config of its own
        return
    rope = read_rope(directory)
    config = json.loads(path.read_text())
    if rope.source == "rope_parameters":
        atomic.write_json(path, config | {"rope_theta": config["rope_parameters"]["rope_theta"]})


def _link_all(source: Path, target: Path, without: Sequence[str]) -> bool:
    """Link the files of a model into a new directory; whether the model has a mark, whose files are checked first.

    Raises RopeError for a link that leads out of the model: what lies there would become a part of the new one.
    """
    if target.exists():
        raise RopeError(f"{target}: is there already; choose another directory")
    marked = digests.check_files(source, None, RESTORE) or (source / digests.MARK).is_file()
    files = [path for path in source.iterdir() if path.is_file() and path.name not in (*without, digests.MARK)]
    root = source.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root  # the hub's cache is made of links
    for path in files:
        if not path.resolve().is_relative_to(root) and not path.resolve().is_relative_to(blobs):
            raise RopeError(f"{path}: is a link to {path.resolve()}, outside of the model; put a copy there instead")
    target.mkdir(parents=True)
    for path in files:
        _link(path.resolve(), target / path.name)
    return marked


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
