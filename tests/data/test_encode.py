"""Tokenised rows: prompt masked, end learned, nothing cut; anything else is refused with the row's id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import Fuse
from transformers import AutoTokenizer

from posttrain.data.encode import (
    IGNORED,
    Encoding,
    RowError,
    encode_each,
    encode_rows,
    lint,
    load_split,
)
from posttrain.data.prompts import render_prompt
from posttrain.data.prompts.control_tokens import control_tokens
from posttrain.data.rows import Row, chat_row, text_row, write_parquet
from posttrain.data.token_files import KEY, SCHEMA, combined, ids_path, read_ids
from posttrain.data.tokenise import spelled, token_ids

CHAT = Encoding("chat", "<|im_end|>", max_length=256, too_long="error")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_init")
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def as_row(question: str, solution: str) -> dict:
    return vars(chat_row(question, solution, "4", "test"))


def test_loss_is_on_the_completion_and_its_end_alone(tokenizer):
    (ids,), (labels,) = encode_rows([as_row("2+2?", "2+2=4. \\boxed{4}")], tokenizer, CHAT)
    learned = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "2+2=4. \\boxed{4}<|im_end|>"
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = render_prompt("chat", [{"role": "user", "content": "2+2?"}], tokenizer)
    assert ids[: labels.count(IGNORED)] == tokenizer(prompt)["input_ids"]  # what evaluation will ask with


def test_r1_zero_continues_the_open_think_tag(tokenizer):
    encoding = Encoding("r1_zero", "<|endoftext|>", 2048, "error")
    (ids,), (labels,) = encode_rows([as_row("2+2?", " so </think> <answer> 4 </answer>")], tokenizer, encoding)
    assert tokenizer.decode(ids).endswith("Assistant: <think> so </think> <answer> 4 </answer><|endoftext|>")
    assert labels[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_row_whose_messages_the_prompt_would_drop_is_a_fault_of_the_row(tokenizer):
    row = as_row("2+2?", "4")
    row["prompt"] = [{"role": "system", "content": "Be brief."}, *row["prompt"]]
    sound, faulty = encode_each([as_row("2+2?", "4"), row], tokenizer, Encoding("r1_zero", "<|im_end|>", 2048, "error"))
    assert sound.fault is None and "a place for one message" in faulty.fault and row["id"] in faulty.fault


def test_without_an_end_nothing_is_appended(tokenizer):
    encoding = Encoding("chat", None, 256, "error")
    (ids,), _ = encode_rows([as_row("2+2?", "4")], tokenizer, encoding)
    assert tokenizer.decode(ids).endswith("assistant\n4")


def test_plain_text_is_learned_whole(tokenizer):
    (ids,), (labels,) = encode_rows([vars(text_row("1+1=2.\n", "t"))], tokenizer, Encoding("none", None, 64, "error"))
    assert ids == labels
    assert tokenizer.decode(ids) == "1+1=2.\n"


def test_prepared_ids_are_read_whole_with_offsets_that_can_hold_any_number_of_tokens(tmp_path):
    split = tmp_path / "train.parquet"
    table = pa.table({"id": list("abc"), "input_ids": [[1, 2], [3], [4, 5, 6]], "n_prompt": [1, 0, 2]}, schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({KEY: b"key"}), ids_path(split), row_group_size=1)
    pq.write_table(table.select(["id"]), split)
    ids = read_ids(split, "key")
    assert ids.values.tolist() == [1, 2, 3, 4, 5, 6] and ids.offsets.tolist() == [0, 2, 3, 6]
    pieces = pa.concat_tables([table, table])
    assert combined(pieces)["input_ids"].type == pa.large_list(pa.int32())  # 32-bit offsets end at 2**31 tokens
    assert combined(pieces)["input_ids"].num_chunks == 1


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_any_row_is_learned_whole_or_refused(question, solution):
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_init")
    try:
        (ids,), (labels,) = encode_rows([as_row(question, solution)], tokenizer, CHAT)
    except RowError:
        return
    learned = [label for label in labels if label != IGNORED]
    assert learned == ids[-len(learned) :]
    assert learned[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("ids", "text", "decoded", "expected"),
    [
        ([5, 2], "a<e>", "a<e>", None),
        ([], "", "", "empty"),
        ([2], "<e>", "<e>", "empty"),
        ([5, 6], "a<e>", "a<e>", "never learn to stop"),
        ([5, 2, 6, 2], "a", "a", "inside the completion"),
        ([5, 2], "abc<e>", "a<e>", "decode to something else"),
    ],
)
def test_lint(ids, text, decoded, expected):
    fault = lint(np.array(ids), text, decoded.encode(), eos_id=2)
    assert (fault is None) if expected is None else expected in fault


@given(st.lists(st.text(max_size=40), max_size=4))
def test_what_ids_stand_for_is_what_the_tokenizer_decodes(texts):
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_init")
    tokenizer.add_tokens(["<é ü>"])
    texts = [*texts, "a<é ü>b<|im_end|>"]
    ids = token_ids(tokenizer, texts)
    decoded = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    assert [text.decode() for text in spelled(tokenizer, ids)] == decoded
    tokenizer.backend_tokenizer.decoder = Fuse()  # a decoder that is not byte-level is asked itself
    assert spelled(tokenizer, ids[-1:]) == ["a<é ü>b<|im_end|>".encode()]


@pytest.mark.parametrize(
    "question, solution", [("a <|im_start|> b", "4"), ("2+2?", "<|im_start|>4"), ("q", "4<|endoftext|>")]
)
@pytest.mark.parametrize("prompt, eos", [("chat", "<|im_end|>"), ("r1_zero", "<|im_end|>"), ("question_only", None)])
def test_a_control_token_in_question_or_answer_is_refused(tokenizer, question, solution, prompt, eos):
    with pytest.raises(RowError, match="the control token") as raised:
        encode_rows([as_row(question, solution)], tokenizer, Encoding(prompt, eos, 256, "error"))
    assert "--control-tokens text" in str(raised.value)
    as_text = control_tokens(tokenizer).as_text
    _, (labels,) = encode_rows(
        [as_row(as_text(question), as_text(solution))], tokenizer, Encoding(prompt, eos, 256, "error")
    )
    assert tokenizer.decode([i for i in labels if i != IGNORED]).replace("\u2060", "").startswith(solution)


def test_plain_text_may_end_itself_and_holds_no_other_control_token(tokenizer):
    encoding = Encoding("none", None, 256, "error")
    whole = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_init")
    encode_rows([vars(text_row("1+1=2.<|endoftext|>", "t"))], whole, encoding)
    for text in ("1+1=2.<|im_end|>", "1<|endoftext|>2"):
        with pytest.raises(RowError, match="the control token"):
            encode_rows([vars(text_row(text, "t"))], whole, encoding)


def test_a_template_that_drops_reasoning_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("message['content']", "message['content'].split('</think>')[-1]")
        with pytest.raises(RowError, match="the chat template changes the completion"):
            encode_rows([as_row("q", "thoughts</think>4")], tokenizer, CHAT)
        tokenizer.chat_template = template.replace("<|im_end|>", "")
        with pytest.raises(RowError, match=r"does not end an answer with '<\|im_end\|>'"):
            encode_rows([as_row("q", "4")], tokenizer, CHAT)
    finally:
        tokenizer.chat_template = template


def write(tmp_path: Path, rows: list[Row]) -> Path:
    write_parquet(tmp_path / "train.parquet", rows)
    return tmp_path / "train.parquet"


def test_a_long_row_is_an_error_or_counted_and_never_cut(tokenizer, tmp_path):
    long_row = chat_row("q", "1+1=2. " * 100, "2", "test")
    path = write(tmp_path, [chat_row("q", "4", "4", "test"), long_row])
    with pytest.raises(RowError, match=rf"row {long_row.id}: \d+ tokens, but max_length is 256"):
        load_split(path, tokenizer, CHAT, None)
    dataset, dropped = load_split(path, tokenizer, Encoding("chat", "<|im_end|>", 256, "drop"), None)
    assert (len(dataset), dropped) == (1, 1)
    with pytest.raises(RowError, match="no rows left"):
        load_split(write(tmp_path, [long_row]), tokenizer, Encoding("chat", "<|im_end|>", 256, "drop"), None)
