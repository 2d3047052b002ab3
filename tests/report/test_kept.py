"""Kept results: no path of a machine enters, metrics follow from the samples, and the pages say what the files say."""

import copy
import json
import shutil

import pytest
from conftest import REPOSITORY, run_script
from finished import GRADED, SETTINGS

from posttrain import atomic, lineage
from posttrain.errors import PosttrainError
from posttrain.evaluation.comparison import compare
from posttrain.evaluation.regrading import regrade
from posttrain.evaluation.results import (
    COMPRESSED_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    read_metrics,
    read_samples,
    rebuild,
    write_metrics,
    write_samples,
)
from posttrain.report.kept import keep, table

KEPT = REPOSITORY / "docs/results/real_model"
PAGE, README = KEPT.with_suffix(".md"), REPOSITORY / "README.md"
BOX = "so \\boxed{{{}}}"


def evaluated(directory, right, n=60, limit=None, model="/home/anna/models/real-0.5b", prompt="chat"):
    """A finished evaluation of `n` questions of GSM8K, of which the first `right` are answered right."""
    settings = copy.deepcopy(SETTINGS) | {"benchmark": "gsm8k", "expected_samples": n, "limit": limit}
    settings["checkpoint"] = {"name": model, "revision": None}
    settings["grader"] = {"name": "posttrain", "version": "1"}
    settings["prompt"] |= {"name": prompt, "hash": f"of the first of {limit}"}
    samples = [
        GRADED[0] | {"id": f"q{i}", "tokens": 100 + i, "completion": BOX.format(1 if i < right else 2)}
        | ({} if i < right else {"verdict": "wrong", "answer": "2", "correct_lenient": False, "vote": 1})
        for i in range(n)
    ]  # fmt: skip
    place = directory / "gsm8k"
    write_samples(place / SAMPLES_FILE, samples)
    atomic.write_json(place / "settings.json", settings)
    write_metrics(place, settings, samples)
    return directory


@pytest.fixture
def run(tmp_path):
    """The output directory of a finished training run, whose record names directories of its machine."""
    record = {
        "run_id": "sft-1", "started": "2026-11-26T00:00:00+00:00", "finished": "2026-11-26T01:30:00+00:00",
        "argv": ["/home/anna/src/sft.py", "recipes/x.yaml", "--model_name_or_path", "/mnt/big/models/real-0.5b"],
        "identity": {"model_name_or_path": "/mnt/big/models/real-0.5b", "learning_rate": 1e-5},
        "inputs": {"dataset": {"path": "/tmp/x/data/gsm8k", "source": {"sha256": {"/srv/gsm8k/train.jsonl": "17f"}}}},
        "arguments": {"logging_dir": "/home/anna/outputs/sft/logs"},
        "result": {"wall_seconds": 5400.0},
    }  # fmt: skip
    atomic.write_json(tmp_path / "outputs/sft" / lineage.RUN_FILE, record)
    return tmp_path / "outputs/sft"


@pytest.fixture
def kept(tmp_path, run):
    """A start and two runs from it, one of which was asked fewer questions."""
    root = tmp_path / "docs/real_model"
    keep.keep(evaluated(tmp_path / "evals/base", 15), None, keep.About(title="Real-0.5B"), root / "base")
    trained = keep.About(title="SFT", base="base", command=keep.command_of(run), hours=keep.hours_of(run))
    keep.keep(evaluated(tmp_path / "evals/sft", 30), run, trained, root / "sft")
    fewer = keep.About(title="few", base="base")
    keep.keep(evaluated(tmp_path / "evals/few", 20, n=40, limit=40), None, fewer, root / "few")
    return root


def texts(root):
    return {path: path.read_text() for path in sorted(root.rglob("*.json"))}


def test_no_path_of_the_machine_is_kept(kept):
    for path, text in texts(kept).items():
        assert not keep.ABSOLUTE.search(text), path
        assert not any(word in text for word in ("anna", "/mnt", "/tmp", "/srv")), path
    record = lineage.read_record(kept / "sft")
    assert record["argv"] == ["src/sft.py", "recipes/x.yaml", "--model_name_or_path", "models/real-0.5b"]
    assert record["inputs"]["dataset"] == {"path": "data/gsm8k", "source": {"sha256": {"train.jsonl": "17f"}}}
    assert "arguments" not in record


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/x/data/gsm8k", "data/gsm8k"),
        ("/data/x/outputs/run/round_1/data", "outputs/run/round_1/data"),
        ("/opt/weights/model", "model"),
        ("config=/a/b.yaml, /c/models/d", "config=b.yaml, models/d"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("outputs/a/b", "outputs/a/b"),
        ("3/4 and 1 / 2", "3/4 and 1 / 2"),
        ("org/model", "org/model"),
    ],
)
def test_absolute_paths_become_those_of_the_repository(text, left):
    assert keep.without_paths({text: [text]}) == {left: [left]}


def test_metrics_follow_from_kept_samples_to_the_byte(kept):
    for directory in kept.glob("*/gsm8k"):
        before = (directory / METRICS_FILE).read_bytes()
        assert not (directory / SAMPLES_FILE).exists()
        rebuild(directory)
        assert (directory / METRICS_FILE).read_bytes() == before


def test_a_later_verifier_grades_kept_samples_again(kept):
    directory = kept / "base/gsm8k"
    assert "0 of 60 changed" in regrade(directory)
    assert regrade(directory) is None
    assert rebuild(directory)["counts"]["correct"] == 15
    assert (directory / COMPRESSED_FILE).is_file()
    assert not (directory / SAMPLES_FILE).exists()


def test_a_row_holds_what_the_comparison_says(kept):
    rows = table.read_rows(kept)
    assert [row.name for row in rows] == ["base", "few", "sft"]
    found = compare(kept / "base/gsm8k", kept / "sft/gsm8k")
    page = table.full_page(rows, kept.with_suffix(".md"))
    cells = [cell.strip() for cell in next(line for line in page.split("\n") if line.startswith("| SFT")).split("|")]
    assert cells[2:5] == ["all 60", "50.0% [37.7%, 62.3%]", "+25.0% [+13.7%, +36.3%]"]
    assert cells[5:8] == ["+15 −0", f"{found.p:.2g}", f"{found.detectable:.1%}"]
    assert cells[8:12] == ["100.0%", "0.0%", "130", "1.5"]
    assert "real_model/sft/gsm8k/metrics.json" in cells[12]
    assert "- SFT: `src/sft.py recipes/x.yaml --model_name_or_path models/real-0.5b`" in page
    assert "## real-0.5b on gsm8k: chat, greedy, 9 tokens" in page


def test_a_row_of_fewer_questions_is_told_apart_and_compared_on_those(kept):
    few = next(row for row in table.read_rows(kept) if row.name == "few")
    assert (few.comparison.questions, few.comparison.a, few.comparison.b) == (40, 15 / 40, 20 / 40)
    page, short = (
        make(table.read_rows(kept), kept.with_suffix(".md")) for make in (table.full_page, table.short_table)
    )
    assert "| few | 40 of them |" in page
    assert "few" not in short
    assert short.count("\n") == 3  # two heads, the start and its run of all questions


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": "nosuch"}, "metrics.json: missing"),
        ({"name": "sft"}, "is kept already"),
        ({"evaluation": "evals/nothing"}, "holds no finished evaluation"),
        ({"run": "outputs/nothing"}, "has no run.json"),
        ({"prompt": "qwen_math_cot"}, "prompt differs"),
    ],
)
def test_what_cannot_be_kept_leaves_nothing_behind(kept, tmp_path, change, said):
    evaluated(tmp_path / "evals/new", 3, prompt=change.get("prompt", "chat"))
    before = sorted(kept.rglob("*"))
    run = tmp_path / change["run"] if "run" in change else None
    about = keep.About(title="new", base=change.get("base", "base"))
    with pytest.raises(PosttrainError, match=said):
        keep.keep(tmp_path / change.get("evaluation", "evals/new"), run, about, kept / change.get("name", "new"))
    assert sorted(kept.rglob("*")) == before


def test_the_command_keeps_and_writes_and_checks(tmp_path, run):
    root, page, readme = tmp_path / "docs/real_model", tmp_path / "docs/real_model.md", tmp_path / "README.md"
    for path in (page, readme):
        atomic.write_bytes(path, f"# Head\n\n{table.BEGIN}\n{table.END}\n\nTail\n".encode())
    evaluated(tmp_path / "evals/base", 15)
    command = ("src/results_table.py", root, "--page", page, "--readme", readme)
    done = run_script(
        *command, "--keep", tmp_path / "evals/base", "--name", "base", "--title", "Real-0.5B", "--run", run
    )
    assert done.returncode == 0, done.stderr
    for path in (page, readme):
        assert "25.0% [15.8%, 37.2%]" in path.read_text()
        assert path.read_text().endswith("Tail\n")
    readme.write_text(readme.read_text().replace("25.0%", "95.0%"))
    refused = run_script(*command, "--check")
    assert refused.returncode == 2
    assert "README.md: its table is not that of the files" in refused.stderr


def test_a_question_that_was_asked_in_another_prompt_is_found(kept):
    directory = kept / "few/gsm8k"
    settings, samples = read_samples(directory)
    samples[7]["prompt_hash"] = "another"
    write_samples(directory / COMPRESSED_FILE, samples)
    write_metrics(directory, settings, samples)
    with pytest.raises(PosttrainError, match="question q7 was asked in another prompt"):
        table.read_rows(kept)


RESULTS = sorted(path.parent for path in KEPT.glob(f"*/*/{METRICS_FILE}"))


@pytest.mark.parametrize(("page", "make"), [(PAGE, table.full_page), (README, table.short_table)])
def test_the_pages_say_what_the_kept_files_say(page, make):
    assert table.put(page.read_text(), make(table.read_rows(KEPT), page), page) == page.read_text()


@pytest.mark.parametrize("directory", RESULTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_metrics_of_kept_results_follow_from_their_samples(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    assert json.loads(json.dumps(rebuild(tmp_path / "copy"))) == read_metrics(directory)
    assert (tmp_path / "copy" / METRICS_FILE).read_bytes() == (directory / METRICS_FILE).read_bytes()


def test_no_path_of_a_machine_is_in_what_is_kept():
    for path, text in texts(KEPT).items():
        assert not keep.ABSOLUTE.search(text), path


def test_the_hours_of_rounds_are_those_of_sampling_and_training(tmp_path):
    stages = [("evaluate", 3600.0), ("sample", 1800.0), ("select", 0.0), ("train", 900.0)]
    stages += [("evaluate epoch 1", 3600.0), ("evaluate", 3600.0)]
    lines = [json.dumps({"stage": stage, "output": "o", "seconds": seconds}) for stage, seconds in stages]
    (tmp_path / keep.SECONDS_FILE).write_text("\n".join(lines) + "\n")
    assert keep.hours_of(tmp_path) == 0.75
