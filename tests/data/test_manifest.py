"""A dataset is what its manifest says, or it is refused."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.data.manifest import ManifestError, Source, check_dataset, write_dataset
from posttrain.data.rows import by_content, chat_row, read_parquet, row_id, text_row
from posttrain.errors import PosttrainError
from posttrain.locks import LockError

SOURCE = Source(id="test", licence="CC0")


@pytest.fixture
def dataset(tmp_path):
    rows = {"train": [chat_row(f"q{i}", f"s{i}", str(i), "test") for i in range(5)]}
    write_dataset(tmp_path / "d", rows, SOURCE, seed=0, dropped={"too_long": 2}, tokenizer=None)
    return tmp_path / "d"


def test_what_is_written_is_accepted_and_counted(dataset):
    manifest = check_dataset(dataset)
    assert manifest["counts"] == {"read": 7, "dropped": {"too_long": 2}, "kept": {"train": 5}}
    assert [row["answer"] for row in read_parquet(dataset / "train.parquet")] == ["0", "1", "2", "3", "4"]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = {"train": [text_row("a b c", "test")]}
    first, second = (
        write_dataset(tmp_path / name, rows, SOURCE, 0, {}, None)["files"]["train.parquet"] for name in ("a", "b")
    )
    assert first == second


def test_a_missing_directory_manifest_or_file(dataset, tmp_path):
    with pytest.raises(ManifestError, match="no such directory"):
        check_dataset(tmp_path / "nowhere")
    (dataset / "train.parquet").rename(dataset / "other.parquet")
    with pytest.raises(ManifestError, match=r"train.parquet: missing"):
        check_dataset(dataset)
    (dataset / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="missing; the dataset is unfinished"):
        check_dataset(dataset)


def test_a_changed_file(dataset):
    with (dataset / "train.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ManifestError, match="changed after it was prepared"):
        check_dataset(dataset)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', "\x00"])
def test_a_manifest_that_is_none(dataset, text):
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(ManifestError):
        check_dataset(dataset)


def test_an_empty_split_leaves_what_was_there(dataset):
    with pytest.raises(ManifestError, match="split validation would have no rows"):
        write_dataset(dataset, {"validation": []}, SOURCE, 0, {"no_gold": 3}, None)
    check_dataset(dataset)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["schema", "columns", "source", "counts", "tokens", "files", "digest", "seed"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), VALUES, st.sampled_from([1, 2]))
def test_a_changed_field_is_noticed_or_changes_nothing(dataset, field, value, schema):
    path = dataset / "manifest.json"
    content = path.read_bytes()
    manifest = json.loads(content)
    try:
        path.write_text(json.dumps(manifest | {"schema": schema} | {field: value}))
        found = check_dataset(dataset)
        assert manifest == found or found["schema"] == 1  # which had no digest of its own
    except ManifestError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["../train.parquet", "a/b.parquet", "/etc/passwd", ""])
def test_a_manifest_names_no_file_elsewhere(dataset, name):
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: manifest["files"]["train.parquet"]}
    path.write_text(json.dumps(manifest | {"schema": 1}))
    with pytest.raises(ManifestError, match="expected the name of a file beside it"):
        check_dataset(dataset)


@pytest.mark.parametrize(
    ("columns", "needed", "said"),
    [
        ({"id": ["a"]}, ("prompt",), "has no column 'prompt', only id"),
        ({"prompt": ["text"]}, ("prompt",), r"column 'prompt': expected list<.*found string"),
        ({"answer": [1]}, ("answer",), "column 'answer': expected string, found int64"),
        ({"answer": ["1", None]}, ("answer",), "1 of 2 rows hold nothing"),
        ({"prompt": [[{"role": "user"}]]}, ("prompt",), "column 'prompt': expected list<"),
    ],
)
def test_a_file_of_other_columns_is_one_line(tmp_path, columns, needed, said):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(PosttrainError, match=said):
        read_parquet(tmp_path / "a.parquet", needed)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(PosttrainError, match="not a parquet file"):
        read_parquet(tmp_path / "a.parquet", needed)


def test_a_directory_has_one_writer_and_keeps_no_file_of_the_dataset_before(dataset):
    (dataset / "train.ids.parquet").write_bytes(b"of other rows")
    (dataset / ".train.parquet.7.ab.tmp").write_bytes(b"of a killed command")
    write_dataset(dataset, {"test": [chat_row("q", "s", "1", "test")]}, SOURCE, 0, {}, None)
    assert sorted(path.name for path in dataset.iterdir()) == [".lock", "manifest.json", "test.parquet"]
    hold = "import sys, time; from pathlib import Path; from posttrain.locks import lock; lock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold, str(dataset)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(LockError, match="still writing there"):
            write_dataset(dataset, {"test": [chat_row("q", "s", "2", "test")]}, SOURCE, 0, {}, None)
        holder.kill()
    check_dataset(dataset)


def test_a_wrong_number_of_rows(dataset):
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["train.parquet"]["rows"] = 4
    manifest["schema"] = 1  # which had no digest of its own
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="5 rows but"):
        check_dataset(dataset)


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_subset_does_not_depend_on_the_order_of_the_file(texts, n, random):
    rows = [{"id": row_id(text)} for text in texts]
    shuffled = random.sample(rows, len(rows))
    assert by_content(rows, n) == by_content(shuffled, n)
