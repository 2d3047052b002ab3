"""A flipped bit in what a run leaves is noticed, or the result is what it was; it is never another result."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from transformers import TrainerState

from posttrain.errors import PosttrainError
from posttrain.models import checkpoints
from posttrain.models.loading import choose_prompt, load_model, read_checkpoint, stop_ids
from posttrain.pipelines.rollouts import Candidate, Question, Rollout, RolloutFile, read_metrics, read_rollouts
from posttrain.training.resume import settle

TINY_BASE = REPOSITORY / "assets/tiny_base"
FEW = 14  # seeds of each kind in every run of the tests: with the results' own test some 40 to 100 bits
MANY = 200


def checkpoint_of(directory: Path) -> None:
    """Two checkpoints with the files of a training run."""
    for step in (2, 4):
        path = directory / f"checkpoint-{step}"
        shutil.copytree(TINY_BASE, path, ignore=shutil.ignore_patterns(checkpoints.MARK, "lineage.json"))
        TrainerState(global_step=step, max_steps=9).save_to_json(str(path / checkpoints.STATE_FILE))
        torch.save({"state": {0: {"exp_avg": torch.full((500,), float(step))}}}, path / "optimizer.pt")
        torch.save({"cpu": torch.get_rng_state()}, path / "rng_state.pth")
        torch.save({"last_epoch": step}, path / "scheduler.pt")
        checkpoints.mark_complete(path)


def resumed(directory: Path) -> dict[str, bytes]:
    """The bytes that a run would go on from: of the last checkpoint, or of the one before."""
    path = settle(directory)
    assert path is not None
    return {str(file.relative_to(directory)): file.read_bytes() for file in path.iterdir()}


def final_of(directory: Path) -> None:
    shutil.copytree(TINY_BASE, directory / "final")
    checkpoints.mark_complete(directory / "final")


def evaluated(directory: Path) -> list[Any]:
    """All that an evaluation takes from a model: how it is asked, what it answers, where it ends."""
    checkpoint = read_checkpoint(str(directory / "final"))
    ids = checkpoint.tokenizer("25*2=").input_ids
    with torch.no_grad():
        logits = load_model(checkpoint, "auto").eval()(torch.tensor([ids])).logits
    prompt = choose_prompt("trained", str(directory / "final"), checkpoint.tokenizer)
    return [ids, logits.tolist(), prompt, stop_ids(checkpoint), checkpoint.positions]


def rollouts_of(directory: Path) -> None:
    prompt = [{"role": "user", "content": "√?"}]
    file = RolloutFile(directory / "rollouts", {"seed": 1})
    for name in "ab":
        file.keep(Rollout(name, prompt, "2", [Candidate("\\boxed{2}", 3, "stop", "2", "correct", -0.5, 0.25)]))
    file.finish([Question(name, prompt, "2") for name in "ab"])


def sampled(directory: Path) -> list[Any]:
    read = RolloutFile(directory / "rollouts", {"seed": 1})
    return [read.metrics(), read_metrics(directory / "rollouts"), list(read_rollouts(directory / "rollouts"))]


KINDS = {"checkpoint": (checkpoint_of, resumed), "final": (final_of, evaluated), "rollouts": (rollouts_of, sampled)}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    found = {}
    for kind, (make, read) in KINDS.items():
        directory = tmp_path_factory.mktemp(kind)
        make(directory)
        found[kind] = (directory, read(directory))
    return found


def flip(directory: Path, choose: random.Random) -> Path:
    """Change one bit of one file below a directory; files are alike likely, whatever their size."""
    file = choose.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.exhaustive)])
def test_a_flipped_bit_never_gives_another_result(wholes, tmp_path, kind, seeds):
    whole, before = wholes[kind]
    noticed = 0
    for seed in seeds:
        copy = Path(shutil.copytree(whole, tmp_path / str(seed)))
        file = flip(copy, random.Random(f"{kind} {seed}"))
        try:
            after = KINDS[kind][1](copy)
        except PosttrainError as error:
            assert "\n" not in str(error)
            noticed += 1
            continue
        if kind == "checkpoint" and "checkpoint-4/optimizer.pt" not in after:
            assert after == {str(p.relative_to(whole)): p.read_bytes() for p in (whole / "checkpoint-2").iterdir()}
            assert len(list((copy / "damaged-checkpoint-4").iterdir())) == len(list((whole / "checkpoint-4").iterdir()))
            noticed += 1
        else:
            assert after == before, file
        shutil.rmtree(copy)
    assert noticed > len(seeds) / 4
