"""Numbers on a command line: each has bounds, and what lies outside them is refused before anything is read."""

import json
import re
import runpy
from pathlib import Path

import pytest
from conftest import REPOSITORY

from posttrain.errors import ArgumentParser, PosttrainError, bounded
from posttrain.pipelines.rollouts import Candidate, Rollout

SCRIPTS = sorted(path for folder in ("src", "data_prep") for path in (REPOSITORY / folder).glob("*.py"))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (bounded(1), "0", "'0': expected a whole number, 1 or more"),
        (bounded(0), "-1", "'-1': expected a whole number, 0 or more"),
        (bounded(0), "1.5", "'1.5': expected a whole number, 0 or more"),
        (bounded(0), "many", "'many': expected a whole number, 0 or more"),
        (bounded(1, 65535), "70000", "'70000': expected a whole number, from 1 to 65535"),
        (bounded(0, 1, float), "nan", "'nan': expected a number, from 0 to 1"),
        (bounded(0, kind=float), "inf", "'inf': expected a number, 0 or more"),
        (bounded(0), "9" * 5000, "expected a whole number, 0 or more"),
    ],
)
def test_a_number_outside_its_bounds_is_refused_with_what_was_expected(kind, text, said, capsys):
    parser = ArgumentParser()
    parser.add_argument("--n", type=kind)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--n", text])
    assert said in capsys.readouterr().err


def test_a_number_within_its_bounds_is_what_it_was():
    assert (bounded(0)("7"), bounded(0, 1, float)("0.5"), bounded(0)(str(10**30))) == (7, 0.5, 10**30)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_number_of_a_script_has_bounds(path):
    assert not re.findall(r"type=(?:int|float)\b(?!.*choices)", path.read_text())


VALIDATION = {  # every script of data_prep that holds rows out, with what it needs beside
    "gsm8k": ["--out", "OUT"],
    "preference_pairs": ["DATA", "--out", "OUT"],
    "pass_rate": ["DATA", "--out", "OUT"],
    "filter_traces": ["DATA/traces.jsonl", "--out", "OUT", "--tokenizer", "assets/tiny_init", "--max-tokens", "99"],
}


def test_every_script_that_holds_rows_out_is_here():
    scripts = {path.stem for path in SCRIPTS if '"--validation"' in path.read_text()}
    assert scripts == set(VALIDATION)


@pytest.mark.parametrize("value", ["-1", "1.5", "all"])
@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_that_is_no_number_of_rows(name, value, tmp_path, monkeypatch, capsys):
    command = [word.replace("DATA", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for word in VALIDATION[name]]
    path = REPOSITORY / f"data_prep/{name}.py"
    monkeypatch.setattr("sys.argv", [str(path), *command, "--validation", value])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(path))["main"]()
    assert f"argument --validation: '{value}': expected a whole number, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def rows_of(name: str, directory: Path) -> list[str]:
    """Three rows, one question each, for a script that would hold rows out."""
    numbers = range(3)
    if name in ("preference_pairs", "pass_rate"):
        verdicts = (("right", "1", "correct"), ("wrong", "2", "wrong"))
        candidates = [Candidate(text, 9, "stop", answer, verdict) for text, answer, verdict in verdicts]
        lines = [Rollout(f"q{i}", [{"role": "user", "content": f"{i}?"}], "1", candidates).to_line() for i in numbers]
        (directory / "rollouts.jsonl").write_text("".join(lines))
        (directory / "metrics.json").write_text("{}")
        return []
    if name == "gsm8k":
        rows = [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in numbers]
        for split in ("train", "test"):
            (directory / split).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["--train", str(directory / "train"), "--test", str(directory / "test")]
    rows = [
        {"question": f"What is {i} + 1?", "response": f"It is \\boxed{{{i + 1}}}.", "gold": f"{i + 1}"} for i in numbers
    ]
    (directory / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--eos-token", "<|im_end|>", "--decontaminate", "none", "--near-duplicates", "0", "--processes", "1"]


@pytest.mark.parametrize("value", [3, 1000])
@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_that_takes_every_row(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    command = [word.replace("DATA", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for word in VALIDATION[name]]
    command += [*rows_of(name, tmp_path), "--validation", str(value)]
    monkeypatch.setattr("sys.argv", [f"data_prep/{name}.py", *command])
    with pytest.raises(PosttrainError, match=rf"--validation {value}: takes all 3 .* lower it$"):
        runpy.run_path(f"data_prep/{name}.py")["main"]()
    assert not (tmp_path / "out/manifest.json").exists()
