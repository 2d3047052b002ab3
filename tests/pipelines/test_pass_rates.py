"""Pass rates: what was sampled says how hard a question is, a band is picked, and every question is accounted for."""

import json
import math
from pathlib import Path

import pytest
from conftest import must, run_script
from hypothesis import given
from hypothesis import strategies as st
from traces import CHAT

from posttrain.data.manifest import Source, check_dataset, write_dataset
from posttrain.data.rows import chat_row, read_parquet
from posttrain.data.traces.shapes import Shape, read_trace
from posttrain.errors import PosttrainError
from posttrain.evaluation.estimates import wilson_interval
from posttrain.grading.grader import Verdict
from posttrain.pipelines.pass_rates import outside, rated, tenths, write_pass_rates
from posttrain.pipelines.preference_data import Asked, Judged
from posttrain.pipelines.rollouts import Candidate, Rollout

NAMES = {"r": ("correct", "stop"), "w": ("wrong", "stop"), "u": ("unparsed", "stop"), "t": ("correct", "length")}
JUDGED = st.builds(
    Judged, st.sampled_from(["a", "b", " "]), st.sampled_from([v.value for v in Verdict]), st.just("stop")
)
PROMPT = [{"role": "user", "content": "?"}]
ASKED = st.builds(Asked, st.just("q"), st.just(PROMPT), st.just("1"), st.lists(JUDGED, max_size=12))


def rollout(number: int, verdicts: str) -> Rollout:
    """A question of `number` + 1; r is a right answer, w a wrong one, u one without a box, t a right one cut off."""
    told = [(f"Attempt {i}. \\boxed{{{number + (v in 'rt')}}}", *NAMES[v]) for i, v in enumerate(verdicts)]
    candidates = [Candidate(text, 5, reason, None, verdict) for text, verdict, reason in told]
    return Rollout(f"id{number}", [{"role": "user", "content": f"{number} + 1?"}], str(number + 1), candidates)


VERDICTS = ["rrrr", "rrrw", "rrww", "rwut", "wwww", "uu"]  # of rollout: t is cut off and right


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    directory = tmp_path / "run/round_1/rollouts"
    directory.mkdir(parents=True)
    (directory / "rollouts.jsonl").write_text("".join(rollout(n, v).to_line() for n, v in enumerate(VERDICTS)))
    (directory / "metrics.json").write_text("{}")
    return directory


@given(ASKED, st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_the_rate_is_that_of_decided_samples_and_lies_in_its_interval(asked, band):
    row = rated(asked)
    decided = [s for s in asked.samples if s.verdict not in ("timeout", "error")]
    if not decided:
        assert row is None and outside(row, band) == "undecided"
        return
    assert row.pass_rate * row.samples == pytest.approx(sum(s.verdict == "correct" for s in decided))
    assert 0 <= row.pass_low <= row.pass_rate <= row.pass_high <= 1 and row.samples == len(decided)
    kept = band[0] <= row.pass_rate <= band[1]
    assert (outside(row, band) is None) == kept and sum(tenths([row])) == 1
    if row.completion:
        assert any(s.text == row.completion[0]["content"] and s.outcome == 1 for s in asked.samples)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_intervals_of_pass_rates_cover(rate):
    """How likely 16 samples are to give an interval that holds the true rate; nominally 0.95."""
    covers = [low <= rate <= high for low, high in (wilson_interval(k, 16) for k in range(17))]
    chances = [math.comb(16, k) * rate**k * (1 - rate) ** (16 - k) for k in range(17)]
    assert sum(chance for chance, inside in zip(chances, covers, strict=True) if inside) > 0.9


def test_a_band_of_a_run_of_expert_iteration(samples, tmp_path):
    counts = write_pass_rates([tmp_path / "run"], tmp_path / "out", (0.4, 0.8), None, validation=1)
    assert counts == {"read": 6, "dropped": {"too_easy": 1, "too_hard": 2}, "kept": {"train": 2, "validation": 1}}
    manifest = check_dataset(tmp_path / "out")
    assert manifest["pass_rates"]["between"] == [0.4, 0.8] and sum(manifest["pass_rates"]["questions_per_tenth"]) == 3
    rows = [r for split in counts["kept"] for r in read_parquet(tmp_path / f"out/{split}.parquet", ("id", "answer"))]
    assert sorted(row["pass_rate"] for row in rows) == [0.5, 0.5, 0.75]
    with pytest.raises(PosttrainError, match="no question is left to train on"):
        write_pass_rates([samples], tmp_path / "none", (0.9, 0.95), None, 0)


def test_an_evaluation_is_joined_with_training_rows_alone(tmp_path):
    train = [chat_row("1 + 1?", "2", "2", "s"), chat_row("2 + 2?", "4", "4", "s")]
    held_out = chat_row("3 + 3?", "6", "6", "s")
    write_dataset(tmp_path / "data", {"train": train, "validation": [held_out]}, Source("s", "MIT"), None, {}, None)
    lines = [
        {
            "id": row.id, "sample": i, "prompt_hash": "", "completion": "so \\boxed{2}", "finish_reason": "stop",
            "tokens": 3, "format": True, "format_compat": True, "answer": "2", "gold": row.answer,
            "verdict": verdict, "correct_lenient": True, "vote": None,
        }
        for row in (*train, held_out) for i, verdict in enumerate(("correct", "wrong", "timeout"))
    ]  # fmt: skip
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    (evaluation / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PosttrainError, match="name the dataset they are of by --questions"):
        write_pass_rates([evaluation], tmp_path / "out", (0, 1), None, 0)
    with pytest.raises(PosttrainError, match="start its src/eval"):
        write_pass_rates([evaluation], tmp_path / "out", (0, 1), tmp_path / "data", 0)
    (evaluation / "metrics.json").write_text("{}")
    counts = write_pass_rates([evaluation], tmp_path / "out", (0, 1), tmp_path / "data", 0)
    assert counts == {"read": 3, "dropped": {"unknown_question": 1}, "kept": {"train": 2}}
    rows = read_parquet(tmp_path / "out/train.parquet")
    assert [(row["samples"], row["pass_rate"]) for row in rows] == [(2, 0.5)] * 2


def test_filter_traces_reads_the_rate_of_a_row(samples, tmp_path):
    write_pass_rates([samples], tmp_path / "out", (0.1, 1), None, 0)
    for row in read_parquet(tmp_path / "out/train.parquet"):
        trace = read_trace(json.dumps(row).encode(), Shape(rate_column="pass_rate"))
        assert (trace.rate, trace.gold) == (row["pass_rate"], row["answer"])
        assert trace.response == row["completion"][0]["content"] and trace.unread == ()


@pytest.mark.exhaustive
def test_filter_traces_orders_by_the_pass_rate(samples, tmp_path):
    must(run_script("data_prep/pass_rate.py", samples, "--between", 0.1, 1, "--out", tmp_path / "rated"))
    rated_file = tmp_path / "rated/train.parquet"
    options = ("--order-by", "pass_rate", "--n", 2, "--max-tokens", 512, "--decontaminate", "none", "--processes", 1)
    must(run_script("data_prep/filter_traces.py", rated_file, *CHAT, *options, "--out", tmp_path / "traces"))
    golds = {row["answer"] for row in read_parquet(tmp_path / "traces/train.parquet")}
    assert golds == {"1", "2"}  # the two that are solved most often


@pytest.mark.slow
def test_the_script_says_what_was_kept_and_refuses_a_band_upside_down(samples, tmp_path):
    done = must(run_script("data_prep/pass_rate.py", samples, "--between", 0.1, 0.9, "--out", tmp_path / "rated"))
    assert "3 train" in done.stdout
    done = run_script("data_prep/pass_rate.py", samples, "--between", 0.9, 0.1, "--out", tmp_path / "o")
    assert done.returncode == 2 and "the lower number first" in done.stderr and "Traceback" not in done.stderr
