"""Half-written checkpoints are recognised; metrics of undone steps are forgotten; directories have one owner."""

import json

import pytest
from made_checkpoint import make

from posttrain import digests
from posttrain.digests import DamageError
from posttrain.lineage import LineageError, claim, start_record
from posttrain.models import checkpoints
from posttrain.training.callbacks import forget_after, wandb_login
from posttrain.training.resume import settle


def as_before(checkpoint):
    """The mark as earlier versions wrote it: names and sizes."""
    sizes = {name: stamp["bytes"] for name, stamp in digests.read_mark(checkpoint).items()}
    (checkpoint / "complete.json").write_text(json.dumps(sizes))


def test_only_marked_and_whole_checkpoints_count(tmp_path):
    make(tmp_path, 10)
    cut = make(tmp_path, 20)
    (cut / "model.safetensors").write_bytes(b"wei")
    make(tmp_path, 100, complete=False)
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-10"
    assert settle(tmp_path).name == "checkpoint-10"
    assert list(checkpoints.steps_of(tmp_path)) == [10]
    assert (tmp_path / "damaged-checkpoint-20/optimizer.pt").is_file()  # it was whole, the other never was
    assert not list(tmp_path.glob("*checkpoint-100*"))


HARMS = {
    "a bit in the weights": ("model.safetensors", lambda b: bytes([b[0] ^ 1]) + b[1:]),
    "a bit in the optimizer": ("optimizer.pt", lambda b: b[:-1] + bytes([b[-1] ^ 128])),
    "random states cut off": ("rng_state.pth", lambda b: b[:-9]),
    "another state": ("trainer_state.json", lambda b: b.replace(b"200", b"300")),
    "a state of other form": ("trainer_state.json", lambda b: b"[1]"),
    "no mark": ("complete.json", None),
    "a mark of nothing": ("complete.json", lambda b: b"{}"),
    "a mark that is none": ("complete.json", lambda b: b"[1]"),
    "a mark without optimizer": ("complete.json", lambda b: b.replace(b"optimizer.pt", b"optimiser.pt")),
    "a mark of weights alone": ("complete.json", lambda b: b'{"model.safetensors": 7}'),
    "a mark that leads out": ("complete.json", lambda b: b'{"../run.json": 7}'),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_taken(tmp_path, harm, caplog):
    for step in (10, 20, 30):
        make(tmp_path, step)
    name, change = HARMS[harm]
    path = tmp_path / "checkpoint-30" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert settle(tmp_path).name == "checkpoint-20"
    assert list(checkpoints.steps_of(tmp_path)) == [10, 20]
    assert (tmp_path / "damaged-checkpoint-30/model.safetensors").is_file()
    assert "checkpoint-30: " in caplog.text and "moved to" in caplog.text


def test_all_damaged_means_none_deleted(tmp_path):
    for step in (10, 20):
        (make(tmp_path, step) / "rng_state.pth").write_bytes(b"")
    (tmp_path / "damaged-checkpoint-20").mkdir()
    assert settle(tmp_path) is None
    moved = {path.name for path in tmp_path.glob("damaged-*/model.safetensors") for path in [path.parent]}
    assert moved == {"damaged-checkpoint-10", "damaged-checkpoint-20-1"}
    checkpoints.rotate(tmp_path, 1, None)
    assert len(list(tmp_path.glob("damaged-*"))) == 3


@pytest.mark.parametrize("name", ["rng_state.pth", "trainer_state.json"])
def test_checkpoints_of_an_earlier_version_go_on_with_a_notice(tmp_path, name, caplog):
    for step in (10, 20):
        as_before(make(tmp_path, step))
    assert settle(tmp_path).name == "checkpoint-20"
    assert "of an earlier version: its mark holds sizes alone" in caplog.text
    path = tmp_path / "checkpoint-20" / name
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert settle(tmp_path).name == "checkpoint-10"


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
    path = tmp_path / "guard.jsonl"
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
    listed = json.loads((path / "complete.json").read_text())
    assert set(listed) == {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"}
    assert listed["optimizer.pt"] == {"bytes": 7, "xxh3_128": digests.bytes_digest(b"moments")}
