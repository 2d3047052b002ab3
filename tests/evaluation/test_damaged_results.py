"""Results are as they were written, or one line says which file is not; a bad line loses only itself."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import digests
from posttrain.errors import PosttrainError
from posttrain.evaluation import results
from posttrain.evaluation.best_of_n import read_sampled
from posttrain.evaluation.comparison import compare
from posttrain.evaluation.results import Result, ResultError, read_metrics, read_samples, rebuild
from posttrain.generation.sample import Sample

QUESTIONS, SAMPLES = 4, 2
SETTINGS = {
    "schema": results.SCHEMA_VERSION, "benchmark": "x", "data_sha256": "d", "limit": None,
    "expected_samples": QUESTIONS * SAMPLES, "checkpoint": {"name": "m"}, "grader": {"name": "posttrain"},
    "prompt": {"name": "chat", "hash": "h", "form": "boxed"},
    "decoding": {"temperature": 0.7, "num_samples": SAMPLES, "max_new_tokens": 9},
}  # fmt: skip


def graded(index: int) -> dict:
    right = index % 3 == 0
    return {
        "id": f"q{index % QUESTIONS}", "sample": index // QUESTIONS, "prompt_hash": "h", "completion": "√\u2028",
        "finish_reason": "stop", "tokens": index + 1, "format": True, "format_compat": True, "answer": "1", "gold": "1",
        "verdict": "correct" if right else "wrong", "correct_lenient": right, "vote": 0 if right else 1,
        "symbolic": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation as src/eval.py leaves it."""
    directory = tmp_path_factory.mktemp("evals") / "x"
    Result(directory, SETTINGS).finish([graded(i) for i in range(QUESTIONS * SAMPLES)])
    return directory


@pytest.fixture
def result(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "x"))


def old(directory: Path) -> Path:
    """As an earlier version left it: nothing vouches for its bytes."""
    (directory / digests.MARK).unlink()
    return directory


def rewrite(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines))


def test_a_finished_evaluation_reads_back_and_is_rebuilt_to_the_byte(result):
    before = (result / "metrics.json").read_bytes()
    assert Result(result, SETTINGS).metrics() == read_metrics(result) == json.loads(json.dumps(rebuild(result)))
    assert (result / "metrics.json").read_bytes() == before
    assert read_samples(old(result))[1][0] == graded(0)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("change", ["a line is a copy of another", "a line is missing", "a line comes twice"])
def test_every_sample_is_there_once(result, marked, change):
    lines = (result / "samples.jsonl").read_text().split("\n")
    lines = {
        "a line is a copy of another": [lines[1], *lines[1:]],
        "a line is missing": lines[1:],
        "a line comes twice": [lines[0], *lines],
    }[change]
    rewrite(result / "samples.jsonl", lines)
    if not marked:
        old(result)
    with pytest.raises(PosttrainError, match="was changed or damaged" if marked else "expected once"):
        rebuild(result)


ODD = [
    "", "{", "[]", "{}", "null", "3", '"text"', '{"schema": 2}', '{"schema": "2"}', "\x00", "[" * 100_000, '"\\ud800"',
    '{"schema": 2, "accuracy": 1}', '{"schema": 2, "limit": NaN}', "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["settings.json", "samples.jsonl", "metrics.json", "complete.json"])
@pytest.mark.parametrize("content", ODD)
def test_odd_files_are_one_line(result, name, content, marked):
    if not marked and name != "complete.json":
        old(result)
    (result / name).write_text(content)
    for read in (read_metrics, read_samples, read_sampled, rebuild, lambda path: Result(path, SETTINGS).metrics()):
        try:
            read(result)
        except PosttrainError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            assert str(result) in str(error)


@pytest.mark.parametrize("samples", [10**30, 10**12, 3, 0, -1])
def test_any_number_of_samples_that_settings_name_is_read_or_refused_at_once(result, samples):
    decoding = {**SETTINGS["decoding"], "num_samples": samples}
    (old(result) / "settings.json").write_text(json.dumps({**SETTINGS, "decoding": decoding}))
    if samples > SAMPLES:
        with pytest.raises(ResultError, match=r"question q0, sample 2: there 0 times, expected once"):
            read_samples(result)


def test_metrics_alone_are_made_again_by_score(result):
    (result / "metrics.json").write_text("{}")
    with pytest.raises(PosttrainError, match=r"make it again: python src/score\.py"):
        read_metrics(result)
    assert json.loads(json.dumps(rebuild(result))) == read_metrics(result)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["settings.json", "samples.jsonl", "metrics.json", "complete.json"]), seed=st.integers(0))
def test_a_flipped_bit_is_noticed_or_changes_nothing(whole, tmp_path_factory, name, seed):
    directory = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flip") / "x"))
    content, choose = bytearray((directory / name).read_bytes()), random.Random(seed)
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    (directory / name).write_bytes(content)
    try:
        found = (read_metrics(directory), read_samples(directory), compare(whole, directory))
    except PosttrainError:
        return
    assert found == (read_metrics(whole), read_samples(whole), compare(whole, whole))


def test_a_bad_line_of_partial_samples_loses_only_itself(tmp_path):
    result = Result(tmp_path, SETTINGS)
    samples = [Sample(i, f"√{i}\u2028\x85", i, "stop") for i in range(4)]
    for sample in samples:
        result.keep(sample)
    lines = result.partial.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"1", b"7", 1)
    result.partial.write_bytes(b"\n".join([b"[1]", *lines, b"\xff\xfe", b'{"index": 9, "text": "x"}']))
    assert result.sampled() == [samples[0], *samples[2:]]
    assert result.sampled() == [samples[0], *samples[2:]]


def test_partial_samples_of_an_earlier_version_are_kept(tmp_path):
    result = Result(tmp_path, SETTINGS)
    lines = [vars(Sample(0, "a", 1, "stop")), vars(Sample(1, "b", 1, "stop")) | {"seam": "x"}, {"index": 2}]
    result.partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert result.sampled() == [Sample(0, "a", 1, "stop")]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0))
def test_a_flipped_bit_in_partial_samples_never_gives_another_sample(tmp_path, seed):
    result, choose = Result(tmp_path, SETTINGS), random.Random(seed)
    samples = [Sample(i, f"answer √{i}", i, "stop") for i in range(4)]
    result.partial.unlink(missing_ok=True)
    for sample in samples:
        result.keep(sample)
    content = bytearray(result.partial.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    result.partial.write_bytes(content)
    assert set(result.sampled()) <= set(samples)


def test_a_result_of_other_settings_names_them(result):
    with pytest.raises(ResultError, match=r"other settings \(limit\)"):
        Result(result, SETTINGS | {"limit": 3})
