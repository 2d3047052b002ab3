"""Rows decided together, token ids kept for training, near-duplicates and contamination: properties, not examples."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.data import token_files
from posttrain.data.benchmarks import Benchmark
from posttrain.data.encode import Encoding, load_split, load_tokenizer
from posttrain.data.rows import chat_row, write_parquet
from posttrain.data.tokenise import FastTokens, token_ids
from posttrain.data.traces import filters, selection, writer
from posttrain.data.traces.contamination import Index, index_of
from posttrain.data.traces.duplicates import BANDS, WIDTH, near_duplicates, signatures
from posttrain.data.traces.inputs import find_inputs
from posttrain.data.traces.parts import PartMaker, Settings, mark_part, read_part, unread_columns, write_part
from posttrain.data.traces.shapes import Shape
from posttrain.errors import printable

TOKENIZER = REPOSITORY / "assets/tiny_init"
NO_INDEX = Index((), {}, np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
SETTINGS = Settings(str(TOKENIZER), None, "chat", "<|im_end|>", False, False, 4, "s", Shape(None, None, None, "rate"))
LIMITS = selection.Limits(60, "prompt+response", 2, 0.8, 3, 8, 2, "rate", 42)


@pytest.fixture(scope="module")
def maker() -> PartMaker:
    return PartMaker(SETTINGS, NO_INDEX)


LINES = st.lists(
    st.one_of(
        st.builds(
            lambda q, r, s, rate: (
                f'{{"question": "{q}?", "response": "{r}", "source": "{s}", "rate": {rate}}}'.encode()
            ),
            st.sampled_from(["1+1", "2+2", "3+3", "4+4", "5+5"]),
            st.sampled_from(
                ["2", "1+1=2. so 2", "1+1=2. " * 30, "<think> 2", "", "2<|im_end|>2", "\\u0000", "7 and 8"]
            ),
            st.sampled_from("ab"),
            st.sampled_from(["0.5", "1", "null", '"x"']),
        ),
        st.binary(min_size=1, max_size=12),
        st.text(min_size=1, max_size=12).map(str.encode),
    ),
    min_size=1,
    max_size=40,
)


def outcome(
    maker: PartMaker, lines: list[bytes], size: int, directory: Path
) -> tuple[list[dict], list[dict], dict, int]:
    """Kept rows, dropped rows, counts and the number read, of lines in parts of `size`."""
    items = list(enumerate(lines, start=1))
    parts = []
    for start in range(0, len(items), size):
        parts.append(directory / f"{start:06d}.arrow")
        write_part(maker.table(items[start : start + size]), parts[-1])
    table = selection.load_table(parts)
    split = selection.decide(table, LIMITS, parts)
    writer.write_files(directory, parts, 200 * 2**20, table, split, "key", dropped=True)
    kept = [
        row | {"split": name}
        for name in selection.SPLITS
        if (directory / f"{name}.parquet").exists()
        for row in pq.read_table(directory / f"{name}.parquet").to_pylist()
    ]
    return kept, pq.read_table(directory / "dropped.parquet").to_pylist(), selection.counts(table), len(table.code)


@settings(max_examples=40, deadline=None)
@given(lines=LINES, size=st.integers(1, 50), shuffled=st.randoms(use_true_random=False))
def test_kept_rows_satisfy_every_filter_and_nothing_is_lost(maker, tmp_path_factory, lines, size, shuffled):
    kept, dropped, counts, n_read = outcome(maker, lines, size, tmp_path_factory.mktemp("a"))
    assert n_read == len(lines) == len(kept) + len(dropped)
    assert sum(counts.values()) == len(dropped)
    assert {reason: sum(row["reason"] == reason for row in dropped) for reason in counts} == counts
    assert len(kept) <= LIMITS.n
    assert len({row["id"] for row in kept}) == len(kept)
    train = {row["prompt"][0]["content"] for row in kept if row["split"] == "train"}
    assert not train & {row["prompt"][0]["content"] for row in kept if row["split"] == "validation"}
    for row in kept:
        response = row["completion"][0]["content"]
        assert row["n_tokens"] <= LIMITS.max_tokens
        assert filters.text_fault(response) is None
        assert not filters.unfinished(response, False)
        assert "<|im_end|>" not in response
        assert sum(other["source"] == row["source"] for other in kept) <= LIMITS.cap
    shuffled.shuffle(lines)
    assert outcome(maker, lines, 7, tmp_path_factory.mktemp("b"))[:3] == (kept, dropped, counts)


SOUND = {"question": "1+1?", "response": "\\boxed{2}", "gold": "2"}
HOSTILE = [
    SOUND | {"gold": "\ud800"}, SOUND | {"source": "\ud800"}, SOUND | {"\ud800": 1}, {"\ud800": "\x1b[31m"},
    SOUND | {"rate": int("9" * 400)}, SOUND | {"rate": "1e999"}, SOUND | {"gold": ". " * 40_000},
    SOUND | {"gold": "9" * 5000}, SOUND | {"gold": [[["1"]]]}, SOUND | {"gold": {"\ud800": 1}}, SOUND | {"gold": "\0"},
    SOUND | {"messages": "\ud800"}, {"messages": [{"role": "\ud800", "content": ""}]}, SOUND | {"system": "\ud800"},
    SOUND | {"response": "#### 1" + " " * 30_000 + "x"}, SOUND | {"gold": "{" * 1800}, SOUND | {"question": "\x1b[2J"},
    SOUND | {"source": "\x1b[2J" + "s" * 10**6}, SOUND | {"context\x1b[2J": "c"},
]  # fmt: skip
LINES_OF_DIGITS = [b'{"question": "q", "response": "r", "gold": ' + b"9" * 5000 + b"}", b"9" * 5000]


def test_one_odd_row_ends_nothing(tmp_path):
    maker = PartMaker(dataclasses.replace(SETTINGS, check_answer=True), NO_INDEX)
    lines = [*(json.dumps(row).encode() for row in HOSTILE), *LINES_OF_DIGITS, json.dumps(SOUND).encode()]
    path = mark_part(write_part(maker.table([*enumerate(lines)]), tmp_path / "part.arrow"))
    table = selection.load_table([path])
    limits = dataclasses.replace(LIMITS, order_by=None)
    split = selection.decide(table, limits, [path])
    writer.write_files(tmp_path, [path], 0, table, split, "key", dropped=True)
    assert (split >= 0).any()
    dropped = pq.read_table(tmp_path / "dropped.parquet").to_pylist()
    assert len(dropped) + (split >= 0).sum() == len(lines)
    for row in dropped:
        assert row["detail"] is None or (printable(row["detail"]) == row["detail"] and len(row["detail"]) <= 300)
    assert unread_columns(path) == {"context\\x1b[2J": 1}


@pytest.mark.parametrize(("mode", "kept"), [("drop", 1), ("text", 4)])
def test_control_tokens_drop_the_row_or_become_text(mode, kept, tmp_path):
    token = "<|im_end|>\n<|im_start|>assistant\n"
    rows = [SOUND, SOUND | {"question": f"a{token}b"}, SOUND | {"response": f"{token} \\boxed{{2}}"}]
    rows += [{"prompt": [{"role": "system", "content": token}, {"role": "user", "content": "q"}], "response": "2"}]
    maker = PartMaker(dataclasses.replace(SETTINGS, control_tokens=mode), NO_INDEX)
    table = maker.table([(n, json.dumps(row).encode()) for n, row in enumerate(rows)])
    reasons = table["reason"].to_pylist()
    assert reasons.count(None) == kept and reasons.count("control_tokens") == len(rows) - kept
    for row in table.to_pylist():
        if row["reason"] is None:
            template = [*row["prompt"], *row["completion"]]
            controls = [i for i in row["input_ids"] if i in maker.tokenizer.all_special_ids]
            assert len(controls) == 2 * len(template), row  # a start and an end of each message
        else:
            assert row["detail"] == "<|im_end|> is written in the text"


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"question": TEXT.filter(str.strip), "response": TEXT, "gold": TEXT, "source": st.sampled_from(["a", "b", ""])}
        | {"rate": st.floats(0, 1) | st.integers(0, 3)}
    ),
    min_size=1,
    max_size=12,
)


def write_all_formats(rows: list[dict], directory: Path) -> list[Path]:
    """The same rows in a file of every format."""
    paths = [directory / f"rows.{format}" for format in ("jsonl", "json", "csv", "parquet")]
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths[1].write_text(json.dumps(rows))
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist([row | {"rate": float(row["rate"])} for row in rows]), paths[3])
    return paths


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_the_same_rows_in_any_format_give_the_same_bytes(tmp_path_factory, maker, rows):
    found = []
    for path in write_all_formats(rows, tmp_path_factory.mktemp("formats")):
        out = tmp_path_factory.mktemp(path.suffix[1:])
        write_part(maker.table(list(find_inputs([path])[0].items())), out / "part.arrow")
        table = selection.load_table([out / "part.arrow"])
        split = selection.decide(table, LIMITS, [out / "part.arrow"])
        writer.write_files(out, [out / "part.arrow"], 0, table, split, "key", dropped=True)
        found.append({file.name: file.read_bytes() for file in out.glob("*.parquet")})
    assert found[0].keys() >= {"dropped.parquet"}
    assert found == [found[0]] * 4


def test_worked_examples_of_a_prompt_make_no_near_duplicates(tmp_path):
    lines = [
        json.dumps({"question": f"{n} times {n * n}?", "response": f"#### {n**3}", "answer": str(n**3)}).encode()
        for n in range(2, 30)
    ]
    fewshot = PartMaker(dataclasses.replace(SETTINGS, prompt="gsm8k_fewshot"), NO_INDEX)
    write_part(fewshot.table([*enumerate(lines)]), tmp_path / "part.arrow")
    table = selection.load_table([tmp_path / "part.arrow"])
    limits = dataclasses.replace(LIMITS, max_tokens=4096, cap=None, n=None, validation=0, order_by=None)
    assert (selection.decide(table, limits, [tmp_path / "part.arrow"]) == 0).all(), selection.counts(table)


def test_a_part_is_mapped_and_not_copied(maker, tmp_path):
    line = json.dumps({"question": "1+1?", "response": "so " * 10_000 + "\\boxed{2}", "answer": "2"}).encode()
    write_part(maker.table([(1, line)]), tmp_path / "part.arrow")
    before = pa.total_allocated_bytes()
    part = read_part(tmp_path / "part.arrow", ["id", "completion"])
    assert part.column_names == ["id", "completion"] and part.nbytes > 30_000
    assert pa.total_allocated_bytes() - before < 10_000


def test_more_rows_do_not_reshuffle_the_rest():
    keys = np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)
    first = set(keys[:900][np.argsort(selection.seeded(keys[:900], 42))[:100]].tolist())
    more = set(keys[np.argsort(selection.seeded(keys, 42))[:100]].tolist())
    assert len(first & more) >= 80
    assert more - first <= set(keys[900:].tolist())
    other = set(keys[:900][np.argsort(selection.seeded(keys[:900], 7))[:100]].tolist())
    assert len(first & other) < 40


def near(tokens: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A copy with a run of tokens replaced."""
    copy = tokens.copy()
    copy[: int(share * len(copy))] = np.random.default_rng(seed).integers(0, 5000, int(share * len(copy)))
    return copy


def test_near_duplicates_are_found_and_others_kept():
    generator = np.random.default_rng(0)
    originals = [generator.integers(0, 5000, 400) for _ in range(50)]
    rows = originals + [near(row, 0.04, 1000 + i) for i, row in enumerate(originals)]
    rows += [near(row, 0.6, 1000 + i) for i, row in enumerate(originals)]
    bands = signatures(rows).reshape(len(rows), BANDS, WIDTH).swapaxes(0, 1)
    found = near_duplicates(lambda: bands, len(rows), threshold=0.8)
    assert not found[:50].any()
    assert found[50:100].all()
    assert not found[100:].any()


def benchmark(name: str, questions: list[str]) -> Benchmark:
    return Benchmark(name, [vars(chat_row(q, "", "1", "s")) for q in questions], "0" * 64, None, 1, "chat")


LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_planted_questions_are_caught_and_their_benchmark_named():
    index = index_of(
        [benchmark("a", [LONG, "What is $2+2$?"]), benchmark("b", ["Some other question of this size is asked here"])]
    )
    planted = ["Please solve: " + LONG.upper().replace(",", " ;"), LONG[:60], "what is 2 + 2", f"x\n{LONG}\ny"]
    assert [index.named(index.touched([text])) for text in planted] == [["a"]] * 4
    for text in (
        "What is 2+3?",
        "Natalia sold clips",
        "",
        "how many clips did she sell altogether in April and May of it",
    ):
        assert index.touched([text]) == 0
    assert index.named(index.touched([LONG, "Some other question of this size is asked here"])) == ["a", "b"]


def test_a_loop_is_one():
    assert filters.most_repeated(np.arange(500)) == 1
    assert filters.most_repeated(np.tile(np.arange(30), 12)) >= 11
    assert filters.most_repeated(np.array([], dtype=np.int32)) == 0


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A split of 40 rows with their ids beside it, as filter_traces writes them."""
    tokenizer = load_tokenizer(str(TOKENIZER), None, "<|im_end|>")
    texts = [f"{n}+1={n + 1}. " * (n + 1) for n in range(40)]
    items = [(n, json.dumps({"question": f"{n}+1?", "response": text}).encode()) for n, text in enumerate(texts)]
    maker = PartMaker(Settings(str(TOKENIZER), None, "chat", "<|im_end|>", False, False, 99, "s", Shape()), NO_INDEX)
    write_part(maker.table(items), tmp_path / "part.arrow")
    table = selection.load_table([tmp_path / "part.arrow"])
    split = selection.decide(table, selection.Limits(10_000, "response", 2, None, None, None, 0, None, 0), [])
    key = token_files.ids_key(tokenizer, "chat", "<|im_end|>")
    writer.write_files(tmp_path, [tmp_path / "part.arrow"], 0, table, split, key, dropped=False)
    assert len(texts) == (split == 0).sum()
    return tmp_path / "train.parquet"


CHAT = Encoding("chat", "<|im_end|>", max_length=10_000, too_long="error")


@pytest.mark.parametrize(("limit", "max_length"), [(None, 10_000), (7, 10_000), (None, 200)])
def test_prepared_ids_are_what_training_would_make(dataset, limit, max_length):
    tokenizer = load_tokenizer(str(TOKENIZER), None, "<|im_end|>")
    encoding = Encoding("chat", "<|im_end|>", max_length, "drop")
    fast, dropped = load_split(dataset, tokenizer, encoding, limit)
    token_files.ids_path(dataset).unlink()
    slow, also_dropped = load_split(dataset, tokenizer, encoding, limit)
    assert fast.to_dict() == slow.to_dict()
    assert fast.features == slow.features
    assert dropped == also_dropped
    assert (dropped > 0) == (max_length == 200)


def test_prepared_ids_are_used_and_only_for_the_same_tokenizer_template_and_rows(dataset, capfd):
    tokenizer = load_tokenizer(str(TOKENIZER), None, "<|im_end|>")
    path = token_files.ids_path(dataset)
    table = pq.read_table(path)
    marked = table.set_column(2, table.schema.field("n_prompt"), [np.full(len(table), 3, dtype=np.int32)])
    pq.write_table(marked.replace_schema_metadata(table.schema.metadata), path)
    used, _ = load_split(dataset, tokenizer, CHAT, None)
    assert used["labels"][0][:4].count(-100) == 3  # the file's, not the template's
    tokenizer.chat_template = "Hello. " + tokenizer.chat_template
    changed, _ = load_split(dataset, tokenizer, CHAT, None)
    assert "made for another tokenizer, template or end" in capfd.readouterr().err
    assert tokenizer.decode(changed["input_ids"][0]).startswith("Hello.")
    for other in (Encoding("r1_zero", "<|im_end|>", 10_000, "drop"), Encoding("chat", None, 10_000, "drop")):
        load_split(dataset, AutoTokenizer.from_pretrained(TOKENIZER), other, None)
        assert "made for another" in capfd.readouterr().err
    tokenizer = load_tokenizer(str(TOKENIZER), None, "<|im_end|>")
    write_parquet(dataset, [chat_row("q", "r", "1", "s")])
    assert len(load_split(dataset, tokenizer, CHAT, None)[0]) == 1
    assert "made for other rows" in capfd.readouterr().err


class Wrong:
    """A fast tokenizer that is wrong."""

    def encode_batch_flat(self, texts):
        return b"\0\0\0\0" * len(texts), np.arange(len(texts) + 1, dtype=np.uint64).tobytes()


def test_fastokens_is_not_believed(capfd):
    pytest.importorskip("fastokens")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    texts = [f"1+{n}=2 so \\boxed{{{n}}}" for n in range(100)]
    fast = FastTokens(tokenizer, lambda texts: token_ids(tokenizer, texts))
    real = [ids.tolist() for ids in token_ids(tokenizer, texts)]
    assert [ids.tolist() for ids in fast(texts)] == real
    assert fast.fast is not None
    fast.fast = Wrong()
    assert [ids.tolist() for ids in fast(texts)] == real
    assert "gives other ids" in capfd.readouterr().err
    assert fast.fast is None
