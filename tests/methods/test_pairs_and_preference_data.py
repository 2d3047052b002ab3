"""Preference pairs: what is chosen was verified right, what is rejected verified wrong, and nothing else is either."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_script
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.data.encode import Encoding, RowError
from posttrain.data.rows import read_parquet
from posttrain.errors import PosttrainError
from posttrain.grading.grader import Verdict
from posttrain.methods.pairs import _encode_split
from posttrain.pipelines.preference_data import (
    Asked,
    Judged,
    PreferenceError,
    audit_pairs,
    merge,
    outcomes_of,
    pairs_of,
    read_samples,
    write_outcomes,
    write_pairs,
)
from posttrain.pipelines.rollouts import Candidate, Rollout

JUDGED = st.builds(
    Judged,
    st.sampled_from(["a", "b", "a ", "c", " ", "d\u2028e"]),
    st.sampled_from([verdict.value for verdict in Verdict]),
    st.sampled_from(["stop", "length"]),
)
ASKED = st.builds(
    Asked, st.just("q"), st.just([{"role": "user", "content": "?"}]), st.just("1"), st.lists(JUDGED, max_size=12)
)


@given(ASKED, st.none() | st.integers(1, 5))
def test_chosen_was_verified_right_and_rejected_verified_wrong(asked, limit):
    by_text: dict[str, set[tuple[str, str]]] = {}
    for sample in asked.samples:
        by_text.setdefault(sample.text, set()).add((sample.verdict, sample.finish_reason))
    pairs = pairs_of(asked, limit)
    assert len({pair.id for pair in pairs}) == len(pairs) <= (limit or 12)
    for pair in pairs:
        assert ("correct", "stop") in by_text[pair.chosen[-1]["content"]]
        assert ("wrong", "stop") in by_text[pair.rejected[-1]["content"]]
    right = {" ".join(s.text.split()) for s in asked.samples if s.outcome == 1}
    wrong = {" ".join(s.text.split()) for s in asked.samples if s.outcome == 0}
    assert bool(pairs) == bool(right and wrong)
    if pairs and limit is None:  # every distinct answer is in a pair
        assert {" ".join(pair.chosen[-1]["content"].split()) for pair in pairs} == right
        assert {" ".join(pair.rejected[-1]["content"].split()) for pair in pairs} == wrong


@given(ASKED)
def test_outcomes_are_those_of_whole_graded_samples(asked):
    whole = [s for s in asked.samples if s.finish_reason == "stop" and s.text.strip()]
    graded = [(s.text, float(s.verdict == "correct")) for s in whole if s.verdict in ("correct", "wrong")]
    assert [(row.completion[-1]["content"], row.outcome) for row in outcomes_of(asked)] == graded


def rollout(number: int, verdicts: str) -> Rollout:
    """A question of `number` + 1; r is a right answer, w a wrong one, u one without a box, t one cut off."""
    texts = {
        "r": rf"\boxed{{{number + 1}}}",
        "w": rf"\boxed{{{number + 2}}}",
        "u": "many",
        "t": rf"\boxed{{{number + 1}}}",
    }
    names = {"r": "correct", "w": "wrong", "u": "unparsed", "t": "correct"}
    candidates = [
        Candidate(f"Attempt {i}. {texts[v]}", 5, "length" if v == "t" else "stop", None, names[v])
        for i, v in enumerate(verdicts)
    ]
    return Rollout(f"id{number}", [{"role": "user", "content": f"{number} + 1?"}], str(number + 1), candidates)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    directory = tmp_path / "samples"
    directory.mkdir()
    verdicts = ["rw", "rrw", "rrr", "www", "ut", "rwwtu", "wr", "rw"]
    lines = [rollout(number, each).to_line() for number, each in enumerate(verdicts)]
    (directory / "rollouts.jsonl").write_text("".join(lines))
    (directory / "metrics.json").write_text("{}")
    return directory


def test_pairs_of_a_directory_are_verified_again_and_held_out_by_question(samples, tmp_path):
    counts = write_pairs([samples], tmp_path / "pairs", validation=2, limit=None)
    assert counts["dropped"] == {"no_wrong_answer": 1, "no_right_answer": 2}
    assert counts["questions"] == {"train": 3, "validation": 2}
    assert audit_pairs(tmp_path / "pairs") == sum(counts["kept"].values()) == 7
    train, validation = (read_parquet(tmp_path / "pairs" / f"{name}.parquet") for name in ("train", "validation"))
    assert not {row["question_id"] for row in train} & {row["question_id"] for row in validation}


def test_an_audit_finds_a_pair_that_is_the_wrong_way_round(samples, tmp_path):
    swapped = (samples / "rollouts.jsonl").read_text().replace('"correct"', '"?"').replace('"wrong"', '"correct"')
    (samples / "rollouts.jsonl").write_text(swapped.replace('"?"', '"wrong"'))
    write_pairs([samples], tmp_path / "pairs", validation=1, limit=1)
    with pytest.raises(PreferenceError, match="5 of 5 pairs are not right over wrong"):
        audit_pairs(tmp_path / "pairs")


def test_a_rejection_buffer_gives_the_same_pairs(samples, tmp_path):
    lines = [
        {
            "example_id": r["id"], "prompt": r["prompt"], "ground_truth": r["gold"],
            "candidates": [{k: c[k] for k in ("text", "verdict", "finish_reason")} for c in r["candidates"]],
        }
        for r in map(json.loads, (samples / "rollouts.jsonl").read_text().splitlines())
    ]  # fmt: skip
    buffer = tmp_path / "rejection_buffer.jsonl"
    buffer.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_samples(buffer)) == list(read_samples(samples))
    buffer.write_text(buffer.read_text() + '{"example_id": 1}\n')
    with pytest.raises(PosttrainError, match=r"rejection_buffer\.jsonl:9: example_id is 1, expected str"):
        list(read_samples(buffer))


def test_directories_that_disagree_about_a_gold_are_refused():
    one, other = (Asked("q", [], gold, []) for gold in ("1", "2"))
    with pytest.raises(PreferenceError, match="two golds"):
        merge([one, other])


def test_nothing_to_write_says_why(samples, tmp_path):
    (samples / "rollouts.jsonl").write_text(rollout(0, "rr").to_line())
    with pytest.raises(PreferenceError, match=r"train would have no rows; left out: \{'no_wrong_answer': 1\}"):
        write_pairs([samples], tmp_path / "pairs", validation=0, limit=None)


def test_the_script_writes_both_kinds(samples, tmp_path):
    done = run_script(
        "data_prep/preference_pairs.py", samples, "--out", tmp_path / "o", "--outcomes", "--validation", 2, fresh=True
    )
    assert done.returncode == 0, done.stderr
    again = write_outcomes([samples], tmp_path / "again", 2)
    assert again["dropped"] == {"neither_right_nor_wrong": 4}
    assert (tmp_path / "o/train.parquet").read_bytes() == (tmp_path / "again/train.parquet").read_bytes()
    done = run_script("data_prep/preference_pairs.py", tmp_path / "none", "--out", tmp_path / "o")
    assert done.returncode == 2 and "no such file or directory" in done.stderr


def test_pairs_are_tokenised_as_evaluation_asks(samples, tmp_path):
    write_pairs([samples], tmp_path / "pairs", validation=0, limit=None)
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    path, chat = tmp_path / "pairs/train.parquet", Encoding("chat", "<|im_end|>", 200, "error")
    encoded, dropped = _encode_split(path, tokenizer, chat, None)
    assert dropped == 0 and len(encoded) == 7
    for row, ids in zip(read_parquet(path), encoded, strict=True):
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids["prompt_ids"]) == prompt
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(ids[f"{side}_ids"]) == row[side][-1]["content"] + "<|im_end|>"
    few, _ = _encode_split(path, tokenizer, chat, 2)
    assert few == [ids for _, ids in sorted(zip([row["id"] for row in read_parquet(path)], encoded, strict=True))][:2]
    with pytest.raises(RowError, match="but max_length is 5"):
        _encode_split(path, tokenizer, Encoding("chat", "<|im_end|>", 5, "error"), None)
    with pytest.raises(RowError, match="no pairs left"):
        _encode_split(path, tokenizer, Encoding("chat", "<|im_end|>", 5, "drop"), None)
