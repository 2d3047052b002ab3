"""The page on a dataset: the loss mask as training has it, packing by TRL, planted drops, and text that is hostile."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, run_script
from test_report import HOSTILE, parse

from posttrain.data.manifest import Source, check_dataset, write_dataset
from posttrain.data.rows import ROW_SCHEMA, chat_row
from posttrain.errors import PosttrainError
from posttrain.report import dataset_page, dataset_rows
from posttrain.report.dataset_page import answer_type

TOKENIZER = REPOSITORY / "assets/tiny_base"


@pytest.fixture(scope="module")
def encoded(tiny_data):
    manifest = check_dataset(tiny_data / "tiny_math")
    tokenizer = dataset_rows.load_tokenizer(str(TOKENIZER), tiny_data)
    return dataset_rows.load_rows(tiny_data / "tiny_math", manifest, tokenizer, "chat"), tokenizer, manifest


@pytest.mark.parametrize(
    "answer, kind",
    [("", "none"), ("-12", "integer"), ("1,234", "integer"), ("0.5", "decimal"), ("3/4", "fraction"),
     (r"\frac{1}{2}", "fraction"), ("$7$", "integer"), ("B", "choice"), (r"\text{(C)}", "choice"),
     (r"50\%", "percent or degrees"), (r"90^\circ", "percent or degrees"), ("(1, 2)", "tuple, set or interval"),
     ("[0,\\infty)", "tuple, set or interval"), ("y=2x", "equation"), (r"\text{east}", "text"), ("Monday", "text"),
     (r"2\sqrt{3}", "expression"), ("x\n+1", "expression")],
)  # fmt: skip
def test_answers_are_told_by_their_look(answer, kind):
    assert answer_type(answer) == kind


def test_pieces_are_what_the_loss_is_on(encoded):
    splits, tokenizer, _ = encoded
    train = next(split for split in splits if split.name == "train")
    for index in range(5):
        found = dataset_rows.pieces(train, index, tokenizer)
        assert [(piece.learned, piece.end) for piece in found] == [(False, False), (True, False), (True, True)]
        assert train.rows[index]["prompt"][0]["content"] in found[0].text
        assert found[1].text.strip() == train.rows[index]["completion"][0]["content"]
        assert found[2].text == "<|im_end|>"


def test_lengths_and_packing_are_those_of_training(encoded):
    splits, _, _ = encoded
    train = next(split for split in splits if split.name == "train")
    assert [len(ids) for ids in train.ids["input_ids"]] == train.lengths.tolist()
    packing = dataset_page.measure_packing(train, 256)
    assert packing.tokens == train.lengths.sum() and packing.too_long == 0
    assert packing.packed_rows >= -(-packing.tokens // 256)
    assert packing.alone < 0.5 < 0.9 < packing.packed <= 1
    short = dataset_page.measure_packing(train, int(train.lengths.max()) - 1)
    assert short.too_long == int((train.lengths == train.lengths.max()).sum()) > 0
    assert short.rows + short.too_long == len(train.rows)


def test_a_budget_is_the_filters_or_holds_every_row(encoded):
    splits, _, manifest = encoded
    longest = max(split.lengths.max() for split in splits)
    assert longest <= dataset_page.default_budget(manifest, splits) < 2 * longest
    assert dataset_page.default_budget({**manifest, "filters": {"max_tokens": 77}}, splits) == 77


def test_a_dataset_without_tokenizer_says_what_to_add(tmp_path):
    with pytest.raises(PosttrainError, match="--tokenizer"):
        dataset_rows.load_tokenizer(None, tmp_path)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """A dataset of hostile text as filter_traces leaves it, dropped rows and all."""
    directory = tmp_path_factory.mktemp("data") / "<b>hostile"
    texts = [text[:400] for text in HOSTILE if not {"\x00", "\ud800"} & set(text)]
    rows = [chat_row(f"{i} {text}", f"{text} \\boxed{{4}}.", "4", "test") for i, text in enumerate(texts)]
    dropped = {"too_long": 7, "duplicate": 2, "near_duplicate": 1, "contaminated": 0}
    write_dataset(directory, {"train": rows}, Source("test", "MIT"), 0, dropped, str(TOKENIZER))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest |= {
        "filters": {"max_tokens": 256, "prompt": "chat", "eos_token": "<|im_end|>"},
        "decontamination": {"ngram": 8, "against": {"gsm8k": {"sha256": "d", "questions": 1319, "rows": 3}}},
    }
    manifest["counts"]["kept"]["validation"] = 0
    manifest["schema"] = 1  # of earlier versions, which wrote no digest
    (directory / "manifest.json").write_text(json.dumps(manifest))
    schema = pa.schema([*ROW_SCHEMA, ("reason", pa.string()), ("detail", pa.string())])
    turn = [{"role": "user", "content": "<script>alert(1)</script> $x^2$"}]
    nothing = {"prompt": None, "completion": None, "n_tokens": None, "answer": None}
    examples = [
        {"id": "a", "prompt": turn, "completion": turn, "answer": "4", "n_tokens": 9000, "source": "s"}
        | {"reason": "too_long", "detail": None},
        {"id": "b", **nothing, "source": "s", "reason": "unreadable", "detail": "line 3: <i>no JSON</i>"},
    ]
    pq.write_table(pa.Table.from_pylist(examples, schema=schema), directory / "dropped.parquet")
    return directory


@pytest.mark.slow
def test_the_page_shows_drops_contamination_and_rows_safely(filtered, tmp_path):
    done = run_script("src/data_report.py", filtered, "--out", tmp_path / "page", fresh=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page/index.html").read_text()
    page = parse(text)
    assert page.tags >= {"svg", "math", "details"}
    assert "line 3: &lt;i&gt;no JSON&lt;/i&gt;" in text and "9,000 tokens" in text
    assert "2 exact and 1 near duplicates" in text and '<td class="n">1319</td>' in text
    assert "Packing at 256 tokens" in text and "budget 256" in text
    for name in ("lengths", "dropped", "answers"):
        assert (tmp_path / f"page/{name}.png").stat().st_size > 5_000 and (tmp_path / f"page/{name}.svg").is_file()


@pytest.mark.slow
def test_generated_data_plain_text_and_gsm8k_without_drops(tiny_data, shared_data, tmp_path):
    made = run_script(
        "data_prep/gsm8k.py", "--train", shared_data / "gsm8k/train.jsonl", "--test", shared_data / "gsm8k/test.jsonl",
        "--out", tmp_path / "gsm8k",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = run_script("src/data_report.py", tiny_data / "tiny_math", "--out", tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    assert "Nothing was dropped" in (tmp_path / "tiny/index.html").read_text()
    refused = run_script("src/data_report.py", tmp_path / "gsm8k", "--out", tmp_path / "page")
    assert refused.returncode == 2 and "--tokenizer" in refused.stderr
    tokenizer = shared_data / "tokenizers/qwen2.5"
    done = run_script("src/data_report.py", tmp_path / "gsm8k", "--tokenizer", tokenizer, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert "7,273" in (tmp_path / "page/index.html").read_text()


def test_text_rows_have_no_prompt(tmp_path, encoded):
    from posttrain.data.rows import text_row

    _, tokenizer, _ = encoded
    directory = tmp_path / "text"
    write_dataset(directory, {"train": [text_row("2+3=5", "s")]}, Source("s", "MIT"), 0, {}, None)
    manifest = check_dataset(directory)
    prompt = dataset_rows.default_prompt(manifest, tokenizer)
    (split,) = dataset_rows.load_rows(directory, manifest, tokenizer, prompt)
    assert prompt == "none"
    assert np.array_equal([piece.learned for piece in dataset_rows.pieces(split, 0, tokenizer)], [True])
