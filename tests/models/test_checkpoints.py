"""Half-written checkpoints are recognised; metrics of undone steps are forgotten; directories have one owner."""

import json

import pytest

from posttrain.digests import DamageError
from posttrain.lineage import LineageError, claim, start_record
from posttrain.models import checkpoints
from posttrain.training.callbacks import forget_after, wandb_login


def make(directory, step, complete=True):
    path = directory / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        checkpoints.mark_complete(path)
    return path


def test_only_marked_and_whole_checkpoints_count(tmp_path):
    make(tmp_path, 10)
    cut = make(tmp_path, 20)
    (cut / "model.safetensors").write_bytes(b"wei")
    make(tmp_path, 100, complete=False)
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-10"
    checkpoints.remove_incomplete(tmp_path)
    assert list(checkpoints.steps_of(tmp_path)) == [10]


def test_steps_are_numbers_not_text(tmp_path):
    for step in (9, 10, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    assert list(checkpoints.steps_of(tmp_path)) == [9, 10, 100]
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-100"


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-1"))
    assert list(checkpoints.steps_of(tmp_path)) == [1, 4]


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1, "note": "a\u2028b"}\n{"step": 2}\n')
    forget_after(path, 1)
    assert path.read_text() == '{"step": 1, "note": "a\u2028b"}\n'
    forget_after(path, 0)
    assert path.read_text() == ""


def test_a_directory_has_one_run(tmp_path):
    out = tmp_path / "run"
    assert claim(out, {"seed": 0}) is None
    start_record(out, {"seed": 0}, {})
    assert claim(out, {"seed": 0})["identity"] == {"seed": 0}
    with pytest.raises(LineageError, match=r"differs in seed \(seed: 0 there, 1 here\)"):
        claim(out, {"seed": 1})
    for content, fault in (("{", "not JSON"), ("{}", "has no 'run_id'"), ("[1]", "expected dict"), ("null", "dict")):
        (out / "run.json").write_text(content)
        with pytest.raises(DamageError, match=fault):
            claim(out, {"seed": 0})


def test_checkpoints_of_nobody_are_not_touched(tmp_path):
    make(tmp_path, 1)
    with pytest.raises(LineageError, match=r"holds checkpoints but no run.json"):
        claim(tmp_path, {})


def test_wandb_login_is_found_where_wandb_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not wandb_login()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_login()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_login()


def test_the_mark_lists_every_file(tmp_path):
    path = make(tmp_path, 1)
    assert json.loads((path / "complete.json").read_text()) == {"model.safetensors": 7}
