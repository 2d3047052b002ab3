"""Studies: the cells of a grid, faults before anything runs, and a small study end to end."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, run_script

from posttrain import atomic, digests
from posttrain.data.manifest import Source, write_dataset, write_manifest
from posttrain.data.rows import chat_row, read_parquet
from posttrain.errors import PosttrainError
from posttrain.pipelines.study.study import (
    EVALS,
    SETTINGS_FILE,
    StudyError,
    cell_name,
    check_finished,
    evaluation_directory,
    evaluation_settings,
    is_evaluated,
    is_trained,
    points,
    read_study,
    train_command,
    training_settings,
)
from posttrain.pipelines.study.study_report import markdown_table, neighbours

# The grid of largest batches trains nothing, and has a script and tests of its own.
STUDIES = sorted(set((REPOSITORY / "studies").glob("*.yaml")) - set((REPOSITORY / "studies").glob("batch_size*.yaml")))
TINY = {
    "recipe": "recipes/tiny_sft.yaml",
    "grid": {"num_train_examples": [8, 16], "append_eos": [True, False]},
    "eval_recipe": "recipes/tiny_eval.yaml",
    "output_dir": "outputs/x",
}


def write(path, **changes):
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", "accelerate_configs/cpu.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_has_only_good_cells(path):
    study = read_study(path)
    assert f"studies/{path.name}" in path.read_text()
    assert all(study.recipe in train_command(study, name) for name in study.cells())


def test_a_grid_has_every_combination_and_neighbours_differ_in_one_place(tmp_path):
    study = read_study(write(tmp_path / "s.yaml"))
    names = list(study.cells())
    assert names[0] == cell_name({"num_train_examples": 8, "append_eos": True}) and len(names) == 4
    assert set(neighbours(study)) == {
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[3]),
        (names[2], names[3]),
    }


def test_variants_are_cells_by_name_and_each_is_held_against_the_first(tmp_path):
    variants = {"all": {"seed": 1}, "lora": {"use_peft": True, "lora_r": 2}, "frozen": {"freeze_layers": 2}}
    study = read_study(write(tmp_path / "s.yaml", grid={}, variants=variants))
    assert study.cells() == variants
    assert neighbours(study) == [("all", "lora"), ("all", "frozen")]
    assert "--freeze_layers" in train_command(study, "frozen")


def test_the_table_for_a_readme_has_what_a_cell_took():
    point = {"n": 4, "accuracy": 0.5, "low": 0.25, "high": 0.75}
    cost = {"trainable_parameters": 1234, "peak_memory_bytes": 3 * 2**20, "wall_seconds": 5.4}
    cells = {"lora_2": {"points": {0: point, 9: {**point, "accuracy": 0.75}}, "cost": cost}}
    assert markdown_table(cells, point).splitlines()[2:] == [
        "| base | 50.0% [25.0%, 75.0%] |  |  |  |",
        "| lora 2 | 75.0% [25.0%, 75.0%] | 1,234 | 3 MiB | 5 s |",
    ]


@pytest.fixture
def finished_study(tmp_path):
    """A study of which the files say that all of it is finished."""
    study = read_study(write(tmp_path / "s.yaml", output_dir=str(tmp_path / "out"), grid={"num_train_examples": [8]}))
    for name in ("base", *study.cells()):
        if name != "base":
            record = {"run_id": f"run-of-{name}", "finished": "today", "result": {"steps": 4}}
            atomic.write_json(tmp_path / "out" / name / "run.json", record)
            atomic.write_json(tmp_path / "out" / EVALS / name / SETTINGS_FILE, training_settings(study, name))
        for step, model in ({0: "assets/tiny_base"} if name == "base" else points(study, name)).items():
            out = evaluation_directory(study, name, step)
            atomic.write_json(out / SETTINGS_FILE, evaluation_settings(study, name, model, out))
            digests.write_mark(out)
    return study


def test_a_finished_study_is_finished_until_its_file_says_otherwise(finished_study):
    (name,) = finished_study.cells()
    check_finished(finished_study)
    assert is_trained(finished_study, name)
    assert not is_trained(dataclasses.replace(finished_study, override={"learning_rate": 2.0e-3}), name)
    other = dataclasses.replace(finished_study, eval_override={"benchmarks": "tiny_1step"})
    with pytest.raises(StudyError, match=r"step_4: evaluated under other settings, which differ in benchmarks"):
        is_evaluated(other, name, 4, points(other, name)[4])
    with pytest.raises(StudyError, match="other settings"):
        check_finished(other)


@pytest.mark.parametrize("changes", [{"run_id": "another"}, {"result": {"steps": 4, "rounds": 3}}])
def test_a_run_made_again_or_continued_is_not_reported_by_an_earlier_evaluation(finished_study, changes, tmp_path):
    (name,) = finished_study.cells()
    path = tmp_path / "out" / name / "run.json"
    atomic.write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(StudyError, match="differ in weights"):
        is_evaluated(finished_study, name, 4, points(finished_study, name)[4])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {"learning_rat": [1.0]}}, "did you mean learning_rate"),
        ({"grid": {"learning_rate": 1.0}}, "expected a field with a list"),
        ({"grid": {"seed": [1, 1]}}, "two cells have one name"),
        ({"variants": {"a": {"seed": 1}}}, "either a grid or variants"),
        ({"grid": {}}, "either a grid or variants"),
        ({"grid": {}, "variants": {"a": 1}}, "expected a name with its fields"),
        ({"grid": {}, "variants": {"a": {"learning_rat": 1.0}}}, "did you mean learning_rate"),
        ({"cells": 3}, "a study has the keys"),
        ({"eval_override": {"benchmark": "x"}}, "did you mean benchmarks"),
        ({"grid": {"dataset_name": ["a/data", "b/data"]}}, "two paths end in the same part.*under variants"),
        ({"grid": {}, "variants": {"evals": {"seed": 1}}}, "evals: not a name for a cell"),
        ({"grid": {}, "variants": {"a/b": {"seed": 1}}}, "a/b: not a name for a cell"),
        ({"recipe": "recipes/nothing.yaml"}, "No such file"),
    ],
)
def test_a_faulty_study_is_refused_before_a_cell_runs(tmp_path, changes, said):
    with pytest.raises((PosttrainError, OSError), match=said):
        read_study(write(tmp_path / "s.yaml", **changes))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"recipe: r.yaml\ngrid: {seed: [1, 2}\n", r"s\.yaml:2: not YAML: expected ',' or ']', but got '}'$"),
        (b"recipe: r\n\thub_token: hf_secret\n", r"s\.yaml:2: not YAML: found character '\\t' that cannot start"),
        (b"\xff\xfe", r"s\.yaml: not YAML: 'utf-8' codec can't decode"),
        (b"[" * 5000, r"s\.yaml: not YAML: maximum recursion depth exceeded"),
        (b"", r"s\.yaml: .*a study has the keys"),
        (b"3", r"s\.yaml: .*a study has the keys"),
    ],
)
def test_what_is_not_yaml_is_one_line_without_the_line_itself(tmp_path, content, said):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(PosttrainError, match=said) as raised:
        read_study(tmp_path / "s.yaml")
    assert "\n" not in str(raised.value) and "hf_secret" not in str(raised.value)


def test_a_dirty_share_changes_answers_and_nothing_else(tmp_path):
    rows = [chat_row(f"What is {i}?", f"It is \\boxed{{{i}}}.", str(i), "test") for i in range(20)]
    write_dataset(tmp_path / "clean", {"train": rows, "test": rows[:3]}, Source("test", "none"), None, {}, None)
    done = run_script(
        "data_prep/dirty.py", tmp_path / "clean", "--share", 0.25, "--out", tmp_path / "dirty", fresh=True
    )
    assert done.returncode == 0, done.stderr
    clean, dirty = (read_parquet(tmp_path / name / "train.parquet") for name in ("clean", "dirty"))
    texts = [(a["completion"][0]["content"], b["completion"][0]["content"]) for a, b in zip(clean, dirty, strict=True)]
    assert sum(a != b for a, b in texts) == 5
    assert [row["answer"] for row in dirty] == [row["answer"] for row in clean]
    assert read_parquet(tmp_path / "dirty/test.parquet") == read_parquet(tmp_path / "clean/test.parquet")


def test_filtered_traces_can_be_dirtied_and_pairs_cannot(tmp_path):
    traces = [{"question": f"What is {i}?", "response": f"It is \\boxed{{{i}}}.", "answer": str(i)} for i in range(8)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    filtered = run_script(
        "data_prep/filter_traces.py", tmp_path / "traces.jsonl", "--tokenizer", "assets/tiny_init", "--max-tokens", 999,
        "--eos-token", "<|im_end|>", "--decontaminate", "none", "--near-duplicates", 0, "--processes", 1, "--out",
        tmp_path / "clean",
    )  # fmt: skip
    assert filtered.returncode == 0, filtered.stderr
    done = run_script("data_prep/dirty.py", tmp_path / "clean", "--share", 0.25, "--out", tmp_path / "dirty")
    assert done.returncode == 0, done.stderr
    assert len(read_parquet(tmp_path / "dirty/train.parquet")) == 8
    (tmp_path / "pairs").mkdir()
    pairs = tmp_path / "pairs/train.parquet"
    pq.write_table(pa.table({"id": ["a"], "chosen": ["right"]}), pairs)
    facts = {"columns": ["id", "chosen"], "seed": 0, "counts": {"kept": {}}, "tokens": None, "decontamination": None}
    write_manifest(tmp_path / "pairs", [pairs], Source("test", "none"), facts)
    for script, said in (
        ("data_prep/dirty.py", "has no column 'prompt', only id, chosen"),
        ("src/data_report.py", "counts no tokens"),
    ):
        flags = ["--share", 0.5, "--out", tmp_path / "x"] if "dirty" in script else ["--out", tmp_path / "x"]
        refused = run_script(script, tmp_path / "pairs", *flags)
        assert refused.returncode == 2
        assert said in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_study_ends_in_one_report_and_goes_on_where_it_stopped(tiny_data, tmp_path):
    study = write(
        tmp_path / "s.yaml",
        grid={"num_train_examples": [16, 400]},
        override={
            "dataset_name": str(tiny_data / "tiny_math"), "max_steps": 100, "eval_strategy": "no",
            "sample_generations": 0,
        },
        eval_override={"data_dir": str(tiny_data), "benchmarks": "tiny_1step,tiny_2step"},
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    done = run_script("src/study.py", study, fresh=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out/report/study.json").read_text())
    first, second = report["cells"].values()
    assert first["points"]["0"] == second["points"]["0"] and first["points"]["0"]["accuracy"] < 0.05
    assert second["points"]["100"]["format_accuracy"] > first["points"]["0"]["format_accuracy"]
    assert first["cost"]["steps"] == 100 and len(report["differences"]) == 3
    assert (tmp_path / "out/report/curves.png").stat().st_size > 10_000
    again = run_script("src/study.py", study)
    assert again.returncode == 0 and "$ " not in again.stdout
    assert json.loads((tmp_path / "out/report/study.json").read_text()) == report
    changed = yaml.safe_load(study.read_text())
    changed["override"]["max_steps"] = 90
    study.write_text(yaml.safe_dump(changed, sort_keys=False))
    refused = run_script("src/study.py", study)
    assert refused.returncode == 2 and "differs in max_steps" in refused.stderr
