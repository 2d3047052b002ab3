"""Records as their source holds them, with its identity: local JSON lines, or a dataset of the hub at a commit."""

from pathlib import Path
from typing import Any

from posttrain import atomic, jsonl
from posttrain.data.manifest import Source
from posttrain.errors import PosttrainError

Record = dict[str, Any]


class SourceError(PosttrainError):
    """A file or a hub dataset that cannot be read, with its place."""


def read_json_lines(path: Path) -> list[Record]:
    """Objects of a JSON Lines file; a line that is none ends the read with its file and number."""
    return jsonl.read_lines(path, {}, f"expected a JSON object on each line; of an array: jq -c '.[]' {path}")


def local_source(name: str, licence: str, files: list[Path]) -> Source:
    """The identity of local copies: the name of what they are copies of, and their digests."""
    return Source(id=name, licence=licence, sha256={str(path): atomic.sha256_file(path) for path in files})


def read_hub(
    name: str, licence: str, splits: list[str], revision: str | None, config: str | None = None
) -> tuple[dict[str, list[Record]], Source]:
    """Splits of a hub dataset at a commit, which is looked up and recorded where none is given."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(name, revision=revision).sha
        records = {split: list(load_dataset(name, config, split=split, revision=revision)) for split in splits}
    except Exception as error:  # the hub's client raises its HTTP library's errors, whichever that is today
        reason = " ".join(str(error).split())
        raise SourceError(f"{name}: not read from the hub ({reason}); use local files, see --help") from error
    return records, Source(name, licence, revision)
