"""What a file may hold that is no row: bombs, other encodings, broken text. Memory is bounded, no row is lost."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.json_text import JsonError, JsonText
from posttrain.data.records import SourceError
from posttrain.data.traces.formats import read_items

ROW = {"question": "1+1?", "response": "\\boxed{2}"}
BOUND = 2**20
MB = 2**20


def items(path: Path, row_bytes: int = BOUND) -> list:
    return list(read_items(path, row_bytes))


def kinds(found: list) -> list[str]:
    return ["row" if isinstance(line, bytes) else line for _, line in found]


TOO_LONG = {
    "a.jsonl": lambda big: (json.dumps(ROW) + "\n" + json.dumps({"question": big}) + "\n").encode(),
    "a.json": lambda big: json.dumps([ROW, {"question": big}]).encode(),
    "object.json": lambda big: json.dumps({"data": [ROW, {"question": big}]}).encode(),
    "one.json": lambda big: json.dumps({"question": "q", "response": big}).encode(),
    "many.json": lambda big: json.dumps({str(n): big[: MB // 2] for n in range(8)}).encode(),
    "before.json": lambda big: json.dumps({"junk": big, "data": [ROW]}).encode(),
    "a.csv": lambda big: f"question,response\nq,r\n{big},r\n".encode(),
    "quoted.csv": lambda big: ("question,response\nq,r\n\"" + "1\n" * (len(big) // 2) + "\",r\n").encode(),
    "wide.csv": lambda big: ("question,response\nq,r\n" + "," * len(big) + "\n").encode(),
    "header.csv": lambda big: f"{big},response\nq,r\n".encode(),
}  # fmt: skip
PACK = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", TOO_LONG)
def test_a_row_beyond_the_bound_is_named_in_every_format(tmp_path, name, packed):
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACK[packed](TOO_LONG[name]("1" * (3 * MB))))
    if name == "a.jsonl":
        assert kinds(items(path)) == ["row", f"a line of more than {BOUND} bytes"]
        return
    with pytest.raises(SourceError, match="raise the bound: --max-row-mb, 1 now"):
        items(path)
    assert items(path, 16 * MB)


def packed_parquets(directory: Path) -> dict[str, list[str]]:
    """Small files that unpack to gigabytes, and what is said of each."""
    big, codec = "1" * MB, {"compression": "zstd"}
    messages = pa.array([[{"role": "user", "content": big}] * 40])
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), [big])
    pq.write_table(pa.table({"a": named}), directory / "dictionary.parquet", **codec)
    pq.write_table(pa.table({"messages": messages}), directory / "nested.parquet", **codec)
    pq.write_table(pa.table({"a": pa.array([big * 20])}), directory / "page.parquet", use_dictionary=False, **codec)
    ones = pa.ListArray.from_arrays([0, 10_000_000], pa.array([1] * 10_000_000, pa.int8()))
    pq.write_table(pa.table({"a": ones}), directory / "list.parquet", **codec)
    return {
        "dictionary.parquet": [f"a row of {MB} bytes, more than 1000000"] * 2000,
        "nested.parquet": [f"a row of {40 * (MB + 8)} bytes, more than 1000000"],
        "page.parquet": ["a group of rows unpacks to 2097"],
        "list.parquet": ["column a.list.element unpacks to 80000000 bytes"],
    }


def test_a_parquet_file_is_measured_before_it_is_unpacked(tmp_path):
    for name, said in packed_parquets(tmp_path).items():
        assert (tmp_path / name).stat().st_size < 300_000
        before = pa.total_allocated_bytes()
        pa.default_memory_pool().release_unused()
        if len(said) == 1 and said[0].startswith(("column", "a group")):
            with pytest.raises(SourceError, match=said[0]):
                items(tmp_path / name, 1_000_000)
        else:
            assert kinds(items(tmp_path / name, 1_000_000)) == said
        assert pa.total_allocated_bytes() - before < 1000


MEMORY = """
import re, sys
from pathlib import Path
from posttrain.data.records import SourceError
from posttrain.data.json_text import ROW_BYTES
from posttrain.data.traces.formats import read_items
def most():  # ru_maxrss would be that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) // 1024
before = most()
for path in map(Path, sys.argv[1:]):
    try:
        print(path.name, sum(1 for item in read_items(path, ROW_BYTES)))
    except SourceError as error:
        print(error)
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bombs_of_every_format_take_little_memory(tmp_path):
    """The files of some kilobytes that took 2.3 to 7.6 GB."""
    packed_parquets(tmp_path)
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"question,response\n")
        for _ in range(200):
            file.write(b"1" * MB)
    compressor = pa.output_stream(str(tmp_path / "a.json.zst"), compression="zstd")
    with compressor as file:
        file.write(b'[{"question": "')
        for _ in range(600):
            file.write(b"1" * MB)
    done = subprocess.run([sys.executable, "-c", MEMORY, *tmp_path.iterdir()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *read, grown = done.stdout.strip().splitlines()
    assert len(read) == 6 and int(grown) < 500, done.stdout


def test_an_xz_file_may_not_ask_for_gigabytes(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 256 * MB}]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b"{}\n", filters=filters))
    with pytest.raises(SourceError, match="Memory usage limit"):
        items(tmp_path / "a.jsonl.xz")
    streams = lzma.compress(b'{"a": 1}\n') + lzma.compress(b'{"b": 1}\n') + b"\0" * 8
    (tmp_path / "two.jsonl.xz").write_bytes(streams)
    assert [line for _, line in items(tmp_path / "two.jsonl.xz")] == [b'{"a": 1}\n', b'{"b": 1}\n']
    (tmp_path / "cut.jsonl.xz").write_bytes(lzma.compress(b"{}\n" * 9999)[:-20])
    with pytest.raises(SourceError, match="cannot be read to its end"):
        items(tmp_path / "cut.jsonl.xz")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "object.json", "a.json.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, name):
    contents = {
        "a.jsonl": json.dumps(ROW) + "\n", "a.json": json.dumps([ROW]), "object.json": json.dumps({"data": [ROW]}),
        "a.csv": "question,response\n1+1?,\\boxed{2}\n",
    }  # fmt: skip
    content = b"\xef\xbb\xbf" + contents[name.removesuffix(".gz")].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [json.loads(line) for _, line in items(tmp_path / name)] == [ROW]
    (tmp_path / name).write_bytes(content.decode("utf-8-sig").encode("utf-16"))
    if not name.endswith(".gz"):
        with pytest.raises(SourceError, match="it is UTF-16"):
            items(tmp_path / name)


def test_an_array_where_lines_are_expected_is_told_its_name(tmp_path):
    for text in (json.dumps([ROW]), json.dumps([ROW], indent=1), "  [\n"):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(SourceError, match=r"holds a JSON array and not one object a line; name it \.json"):
            items(tmp_path / "a.jsonl")


def test_json_gives_what_json_lines_give_down_to_odd_text_and_numbers(tmp_path):
    texts = [
        r'{"a": "\ud800 x"}', r'{"a": "\ud83d\ude00"}', '{"a": ' + "1" * 5000 + "}", '{"a": 1e400, "b": -0.0}',
        '{"a": 12345678901234567890123}', '{"a": NaN}', "[1]", "null", '"text"', "3", '{"a": 1, "a": 2}', "{}",
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(text + "\n" for text in texts))
    (tmp_path / "a.json").write_text("[\n " + ",\n ".join(texts) + " ]\n")
    (tmp_path / "data.json").write_text('{"n": [1, {"from": 1}], "data": [' + ",".join(texts) + '], "z": {}}')
    expected = [line.strip() for _, line in items(tmp_path / "a.jsonl")]
    assert [line for _, line in items(tmp_path / "a.json")] == expected == [text.encode() for text in texts]
    assert [line for _, line in items(tmp_path / "data.json")] == expected
    (tmp_path / "bad.json").write_bytes(b'[{"a": "\xff"}, {"a": 1}]')
    assert [line for _, line in items(tmp_path / "bad.json")] == [b'{"a": "\xff"}', b'{"a": 1}']


def test_rows_below_both_names_are_all_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"conversations": [ROW], "n": 1, "data": [ROW, ROW]}))
    assert len(items(tmp_path / "a.json")) == 3
    one = {"conversations": [{"from": "human", "value": "q"}], "data": [], "id": 1}
    (tmp_path / "a.json").write_text(json.dumps(one))
    assert [json.loads(line) for _, line in items(tmp_path / "a.json")] == [one]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(
    values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii=st.booleans(),
    size=st.integers(1, 9),
)  # fmt: skip
def test_any_json_comes_back_value_by_value_however_it_is_cut(values, indent, ascii, size):
    content = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    text = JsonText(Trickle(content, size), 10**6)
    if b"\xed" in content:  # half a surrogate pair as bytes, which is no UTF-8
        return
    assert [json.loads(value) for value in text.items()] == values
    text.end()


class Trickle(io.BytesIO):
    """A file that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self.size = size

    def read(self, _size: int = -1) -> bytes:
        return super().read(self.size)


@settings(max_examples=300)
@given(content=st.binary(max_size=60) | st.text('{}[]",:\\ \n01eE.-ntrufalse', max_size=60).map(str.encode))
def test_no_bytes_are_anything_but_json_or_a_named_fault(content):
    text = JsonText(io.BytesIO(content), 1000)
    try:
        found = [json.loads(value) for value in text.items()]
        text.end()
    except (JsonError, ValueError):
        return
    assert found == json.loads(content.decode("utf-8-sig", "surrogateescape"))


FILES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.zst", "a.csv.bz2", "a.json.xz"]
        ),
        "content": st.none() | st.binary(max_size=200),  # None: a sound file, changed
        "changes": st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3),
    }
)


def read_or_refuse(directory: Path, name: str, content: bytes | None, changes: list[tuple[int, int]]) -> None:
    """Every row of a file is an item, or one line says what ended the file."""
    if content is None:
        changed = bytearray(VALID[name]())
        for place, byte in changes:
            changed[place % len(changed)] = byte
        content = bytes(changed)
    path = directory / name
    path.write_bytes(content)
    try:
        for number, line in read_items(path, 4096):
            assert number >= 1 and isinstance(line, bytes | str)
    except SourceError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=200)
@given(file=FILES)
def test_no_file_ends_in_a_traceback(tmp_path_factory, file):
    read_or_refuse(tmp_path_factory.mktemp("fuzz"), **file)


@pytest.mark.exhaustive
@settings(max_examples=30_000)
@given(file=FILES)
def test_no_file_of_thirty_thousand_ends_in_a_traceback(tmp_path_factory, file):
    read_or_refuse(tmp_path_factory.getbasetemp(), **file)


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(ROW))
    writer.writeheader()
    writer.writerows([ROW] * 3)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW | {"messages": [{"role": "user"}]}] * 3), sink, compression="zstd")
    return sink.getvalue()


def test_a_bit_of_a_parquet_file_ends_no_process(tmp_path):
    """Metadata that do not agree with each other once aborted it, past any handler."""
    content = as_parquet()
    for place in range(len(content) // 2, len(content), 2):
        changed = bytearray(content)
        changed[place] ^= 1 + place % 5
        (tmp_path / "a.parquet").write_bytes(changed)
        with contextlib.suppress(SourceError):
            items(tmp_path / "a.parquet")


def test_a_column_whose_name_is_no_text_ends_the_file(tmp_path):
    content = as_parquet()
    assert content.count(b"question") > 1
    (tmp_path / "a.parquet").write_bytes(content.replace(b"question", b"\x89uestion"))
    with pytest.raises(SourceError, match="cannot be read to its end"):
        items(tmp_path / "a.parquet")


LINES = (json.dumps(ROW) + "\n").encode() * 3
ARRAY = json.dumps({"data": [ROW] * 3}).encode()
VALID = {
    "a.jsonl": lambda: LINES, "a.json": lambda: ARRAY, "a.csv": as_csv, "a.parquet": as_parquet,
    "a.jsonl.gz": lambda: gzip.compress(LINES), "a.json.zst": lambda: PACK[".zst"](ARRAY),
    "a.csv.bz2": lambda: bz2.compress(as_csv()), "a.json.xz": lambda: lzma.compress(ARRAY),
}  # fmt: skip
