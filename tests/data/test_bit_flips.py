"""One bit of a prepared dataset or of a cached part turns on a disk: it is noticed, or nothing that is read differs."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from traces import TOKENIZER, solved

from posttrain.data.encode import Encoding, load_split, load_tokenizer
from posttrain.data.manifest import ManifestError, Source, check_dataset, write_manifest
from posttrain.data.rows import read_parquet
from posttrain.data.token_files import ids_key
from posttrain.data.traces import selection, writer
from posttrain.data.traces.contamination import Index
from posttrain.data.traces.inputs import find_inputs
from posttrain.data.traces.parts import Settings
from posttrain.data.traces.shapes import Shape
from posttrain.data.traces.workers import make_parts

NO_INDEX = Index((), {}, np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
SETTINGS = Settings(str(TOKENIZER), None, "chat", "<|im_end|>", False, False, 8, "s", Shape())
LIMITS = selection.Limits(512, "prompt+response", 2, None, None, None, 5, None, 42)
ENCODING = Encoding("chat", "<|im_end|>", 512, "error")


def write_lines(directory: Path) -> Path:
    rows = [solved(number) for number in range(40)] + [solved(3), {"question": "only"}]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory / "rows.jsonl"


def parts_of(lines: Path, work: Path) -> list[Path]:
    return [path for path, _ in make_parts(find_inputs([lines]), SETTINGS, NO_INDEX, work, n_processes=1)]


def files_of(parts: list[Path], out: Path) -> list[Path]:
    """The files of the dataset that these parts give."""
    out.mkdir(exist_ok=True)
    table = selection.load_table(parts)
    split = selection.decide(table, LIMITS, parts)
    key = ids_key(load_tokenizer(SETTINGS.tokenizer, None, SETTINGS.eos_token), "chat", "<|im_end|>")
    return writer.write_files(out, parts, 10**6, table, split, key, dropped=True)


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("flips")
    files = files_of(parts_of(write_lines(directory), directory / "work"), directory / "out")
    facts = {"columns": ["id"], "seed": 0, "counts": {"kept": {"train": 35, "validation": 5}}}
    write_manifest(directory / "out", files, Source("s", "CC0"), facts | {"tokens": None, "decontamination": None})
    return directory / "out"


def everything(directory: Path) -> object:
    """What training reads of a dataset: its manifest, its rows and its token ids."""
    manifest = check_dataset(directory)
    tokenizer = load_tokenizer(SETTINGS.tokenizer, None, "<|im_end|>")
    splits = [directory / f"{split}.parquet" for split in ("train", "validation")]
    ids = [load_split(path, tokenizer, ENCODING, None)[0].to_dict() for path in splits]
    return manifest, [read_parquet(path) for path in splits], ids


@pytest.mark.parametrize("flips", [50, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_a_bit_of_a_dataset(dataset, tmp_path, flips):
    chance, expected, noticed = random.Random(flips), everything(dataset), 0
    names = sorted(path.name for path in dataset.iterdir() if path.name != "dropped.parquet" and path.is_file())
    for number in range(flips):
        copy = tmp_path / "copy"
        shutil.copytree(dataset, copy)
        flip(copy / names[number % len(names)], chance)
        try:
            assert everything(copy) == expected
        except ManifestError:
            noticed += 1
        shutil.rmtree(copy)
    assert noticed > 0.9 * flips


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_a_bit_of_a_cached_part(dataset, tmp_path, capsys, flips):
    chance, lines, work = random.Random(flips), write_lines(tmp_path), tmp_path / "work"
    (part,) = parts_of(lines, work)
    expected = [path.read_bytes() for path in files_of([part], tmp_path / "expected")]
    for _ in range(flips):
        flip(part, chance)
        (part,) = parts_of(lines, work)
        assert "changed on disk after it was written: it is made again" in capsys.readouterr().err
        assert [path.name for path in work.glob("*.arrow")] == [part.name]
    assert [path.read_bytes() for path in files_of([part], tmp_path / "out")] == expected


def test_a_part_without_its_digest_is_not_whole(tmp_path, capsys):
    lines, work = write_lines(tmp_path), tmp_path / "work"
    (part,) = parts_of(lines, work)
    whole = part.read_bytes()
    part.rename(work / f"{part.name.partition('.')[0]}.arrow")  # killed before it got its name
    (again,) = parts_of(lines, work)
    assert again.read_bytes() == whole and again == part


def test_ids_that_no_manifest_lists_are_not_used(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "copy")
    path = tmp_path / "copy/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["train.ids.parquet"]
    path.write_text(json.dumps(manifest))
    table = pq.read_table(tmp_path / "copy/train.ids.parquet")
    wrong = table.set_column(2, table.schema.field("n_prompt"), [np.full(len(table), 3, dtype=np.int32)])
    pq.write_table(wrong, tmp_path / "copy/train.ids.parquet")
    tokenizer = load_tokenizer(SETTINGS.tokenizer, None, "<|im_end|>")
    used, expected = (
        load_split(directory / "train.parquet", tokenizer, ENCODING, None)[0].to_dict()
        for directory in (tmp_path / "copy", dataset)
    )
    assert "not of this dataset, whose manifest does not list it" in capsys.readouterr().err
    assert sorted(map(str, used["labels"])) == sorted(map(str, expected["labels"]))
