"""Declarations are complete, a set is what it claims to be, and a gold that cannot be scored is named."""

import json

import pytest
import yaml
from conftest import run_script

from posttrain.data.benchmark_rows import check_golds, check_rows, to_rows
from posttrain.data.benchmarks import DECLARATIONS, BenchmarkError, declaration, load_benchmarks
from posttrain.data.prompts import declared_prompt
from posttrain.data.rows import chat_row
from posttrain.errors import PosttrainError

DECLARED = yaml.safe_load(DECLARATIONS.read_text())
FROM_HUB = [name for name, declared in DECLARED.items() if "hub" in declared]


@pytest.mark.parametrize("name", FROM_HUB)
def test_a_declaration_says_where_what_and_how_many(name):
    declared = declaration(name)
    assert set(declared) - {"config", "answer_tolerance"} == {
        "file", "script", "n", "k", "prompt", "hub", "split", "revision", "question", "answer",
    }  # fmt: skip
    assert len(declared["revision"]) == 40
    assert declared["script"] == f"data_prep/benchmarks.py {name}"


def test_the_sizes_that_tell_sets_of_one_name_apart():
    sizes = {name: DECLARED[name]["n"] for name in [*FROM_HUB, "gsm8k"]}
    assert sizes == {
        "gsm8k": 1319, "math500": 500, "aime24": 30, "aime25": 30, "amc23": 40, "amc83": 83, "minerva": 272,
        "olympiadbench": 674,
    }  # fmt: skip


def test_every_benchmark_names_a_prompt_that_is_there():
    assert all(declared_prompt(declared["prompt"]) for declared in DECLARED.values())
    with pytest.raises(PosttrainError, match="'socratic': unknown; known: chat"):
        declared_prompt("socratic")


def records(n: int) -> list[dict]:
    return [{"question": f"What is {i} + 1?", "final_answer": [f"${i + 1}$"]} for i in range(n)]


def test_an_answer_of_several_values_is_a_list():
    declared = DECLARED["olympiadbench"]
    (row,) = to_rows([{"question": "Solve.", "final_answer": ["$x=1$", "$x=-2$"]}], declared, "olympiadbench")
    assert row.answer == "$x=1$, $x=-2$"
    check_rows(to_rows(records(674), declared, "olympiadbench"), declared, "here")


def test_another_set_is_refused():
    declared = DECLARED["olympiadbench"]
    with pytest.raises(BenchmarkError, match="here: 5 questions, expected 674"):
        check_rows(to_rows(records(5), declared, "olympiadbench"), declared, "here")
    with pytest.raises(BenchmarkError, match="record 1: expected text in 'question'"):
        to_rows([{"problem": "1+1", "answer": "2"}], declared, "olympiadbench")


@pytest.mark.parametrize("gold", ["", "{1", "x" * 3000])
def test_a_bad_gold_is_an_error_that_names_the_row(gold):
    row = chat_row("Which one?", "", gold, "test")
    with pytest.raises(BenchmarkError, match=rf"row {row.id}: bad gold"):
        check_golds([chat_row("1+1?", "", "2", "test"), row], "here")


def test_several_sets_in_one_command_are_checked_first(tmp_path):
    done = run_script("data_prep/benchmarks.py", "aime25", "poetry", "--out", tmp_path, fresh=True)
    assert done.returncode == 2
    assert "poetry: not prepared by" in done.stderr
    file = tmp_path / "aime.jsonl"
    file.write_text("\n".join(json.dumps({"problem": f"{i}?", "answer": f"{i:03d}"}) for i in range(30)))
    done = run_script("data_prep/benchmarks.py", "aime25", "--file", file, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (benchmark,) = load_benchmarks("aime25", tmp_path, None)
    assert len(benchmark.rows) == 30
    done = run_script("data_prep/benchmarks.py", "aime25", "aime24", "--file", file, "--out", tmp_path)
    assert "are of one benchmark" in done.stderr
