"""The shape of a model, from a config alone: of a directory, of the shipped table, or of the hub. Without torch."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import PosttrainError
from posttrain.models.source import ADAPTER_CONFIG, HUB_NAME, LOCAL_ROOTS, adapter_base

TABLE = Path(__file__).with_name("shapes.yaml")
DECODERS = ("qwen2", "qwen3", "llama", "mistral")  # whose layers the formulas of this folder describe
SIZES = ("layers", "hidden", "feed_forward", "heads", "key_heads", "head", "vocabulary", "positions")
SUFFIXES = ("-Instruct", "-Base")  # of models of the same shape


class ShapeError(PosttrainError):
    """A model whose shape cannot be known."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of Llama's kind: RMSNorm, rotary positions, grouped queries, SwiGLU. All are counts."""

    kind: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    positions: int
    tied: bool

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head

    @property
    def key(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.key_heads * self.head

    @property
    def matrices(self) -> int:
        """Values of the matrices of one layer, which products of matrices read."""
        return self.hidden * (2 * self.query + 2 * self.key + 3 * self.feed_forward)

    @property
    def layer(self) -> int:
        """Parameters of one layer: Qwen2 has biases on queries, keys and values, Qwen3 norms of their heads."""
        biases = self.query + 2 * self.key if self.kind == "qwen2" else 0
        return self.matrices + 2 * self.hidden + biases + (2 * self.head if self.head_norms else 0)

    @property
    def head_norms(self) -> bool:
        return self.kind == "qwen3"

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding, and of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def adaptable(self) -> int:
        """Rows plus columns of the matrices that an adapter on all linear layers sits on."""
        widths = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key) + 3 * (self.hidden + self.feed_forward)
        return self.layers * widths


def shape_of(config: dict[str, Any], where: str) -> Shape:
    """The shape that a config.json describes; raises ShapeError for an architecture that the formulas do not know."""
    config = config.get("text_config") or config
    kind = config.get("model_type")
    if kind not in DECODERS:
        raise ShapeError(f"{where}: model_type: {kind!r}: no plan for it; plans are for {', '.join(DECODERS)}")
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return Shape(
            kind=kind,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            key_heads=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", kind == "qwen2")),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ShapeError(f"{where}: not the config of a {kind} model ({type(error).__name__}: {error})") from error


def read_shape(name: str, revision: str | None = None) -> Shape:
    """The shape of a model by its directory or its name on the hub; raises ShapeError in one line.

    A directory that a run of this repository would write, and has not yet, has the shape of what that run starts from.
    """
    path = Path(name)
    if (path / ADAPTER_CONFIG).is_file():
        return read_shape(adapter_base(path))
    if path.is_dir() or path.parts[:1] in [(root,) for root in LOCAL_ROOTS]:
        return _of_directory(path)
    if not HUB_NAME.fullmatch(name):
        raise ShapeError(f"{name}: no such directory, and not a name on the hub (organisation/model)")
    return shipped().get(base_name(name)) or shipped().get(name) or _of_hub(name, revision)


def _of_directory(path: Path) -> Shape:
    try:
        return shape_of(json.loads((path / "config.json").read_text()), f"{path}/config.json")
    except FileNotFoundError:
        written = recipe_that_writes(path)
        if written is None:
            raise ShapeError(
                f"{path}: has no config.json, and no recipe of recipes/ writes there; name a model of its shape by "
                f"--model_name_or_path"
            ) from None
        return read_shape(str(written["model_name_or_path"]), written.get("model_revision"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{path}/config.json: cannot be read ({error}); copy it again") from error


def recipe_that_writes(directory: Path) -> dict[str, Any] | None:
    """The values of the recipe of recipes/ whose run leaves its model in `directory`, or None.

    Headers of other recipes count too: they name such a run by `recipes/x.yaml … --output_dir DIRECTORY`.
    """
    run = directory.parent if directory.name == "final" or directory.name.startswith("checkpoint-") else directory
    contents = {path: path.read_text() for path in sorted(Path("recipes").glob("*.yaml"))}
    for path, text in contents.items():
        named = rf"{re.escape(str(path))}\b.*--output_dir {re.escape(str(run))}(?!\S)"
        content = yaml.safe_load(text)
        writes = isinstance(content, dict) and Path(str(content.get("output_dir"))) == run
        if writes or any(re.search(named, header) for header in contents.values()):
            start = content.get("model_name_or_path")
            return None if start is None or Path(str(start)).parent == run else content
    return None


def base_name(name: str) -> str:
    for suffix in SUFFIXES:
        if name.endswith(suffix) and name not in shipped():
            return name.removesuffix(suffix)
    return name


@cache
def shipped() -> dict[str, Shape]:
    """The table of shapes that comes with posttrain, by name on the hub."""
    return {
        name: Shape(kind=kind, **dict(zip(SIZES, row["sizes"], strict=True)), tied=row["tied"])
        for kind, rows in yaml.safe_load(TABLE.read_text()).items()
        for row in rows
        for name in row["names"]
    }


def _of_hub(name: str, revision: str | None) -> Shape:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        file = hf_hub_download(name, "config.json", revision=revision)
        return shape_of(json.loads(Path(file).read_text()), name)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ShapeError(
            f"{name}: its config.json cannot be had from the hub ({type(error).__name__}: {reason}); name a directory "
            f"with one, or a model of the shipped table (src/posttrain/plan/shapes.yaml)"
        ) from error
