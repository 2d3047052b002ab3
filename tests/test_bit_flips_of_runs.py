"""A flipped bit in what a run leaves is noticed, or the result is what it was; it is never another result."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from transformers import TrainerState

from posttrain import jsonl, lineage
from posttrain.api import read_result
from posttrain.digests import DamageError
from posttrain.errors import PosttrainError
from posttrain.memory.bank.cache import BankShape, as_fact, build_bank, check_mapping, load_bank, write_bank
from posttrain.memory.bank.questions import facts_by_uuid
from posttrain.methods.grpo.guard import read_guard
from posttrain.models import checkpoints
from posttrain.models.loading import choose_prompt, load_model, read_checkpoint, stop_ids
from posttrain.pipelines.rollouts import Candidate, Question, Rollout, RolloutFile, read_metrics, read_rollouts
from posttrain.report import content
from posttrain.report.memory_banks import read_banks
from posttrain.training.callbacks import forget_after
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


ROPE = {"rope_theta": 1e4, "rope_type": "default", "max_position_embeddings": 64}
DETAILS = {"prompt": "chat", "eos_token": None, "rope": {"base": ROPE, "trained": ROPE}, "sessions": []}
LOGGED = [{"step": step, "loss": 3.0 - step / 4, "learning_rate": 1e-3, "note": "√"} for step in range(1, 9)]


def begun_of(directory: Path) -> None:
    """A run that was stopped after step 8, with its guard."""
    lineage.start_record(directory, {"seed": 0}, DETAILS)
    jsonl.append(directory / "metrics.jsonl", LOGGED)
    guarded = [{"step": step, "accuracy": 0.5, "truncated": 0.0, "correct": [1, 0, None]} for step in (0, 4)]
    jsonl.append(directory / "guard.jsonl", guarded)


def continued(directory: Path) -> list[Any]:
    """What a run believes that goes on at step 6, and what a page says of it."""
    record, asked = lineage.claim(directory, {"seed": 0}), content.read_runs([directory])[0].steps
    for name in ("metrics.jsonl", "guard.jsonl"):
        forget_after(directory / name, 6)
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    guarded = read_guard(directory / "guard.jsonl", 3)
    if (len(logged), len(guarded)) != (6, 2):
        raise DamageError("a damaged line is left out, and the run says so")
    return [record and record["run_id"], asked, logged, guarded]


def finished_of(directory: Path) -> None:
    begun_of(directory)
    record = lineage.read_record(directory)
    lineage.write_closed(directory, lineage.closed(directory, record, {"steps": 8, "best_metric": None}))
    (directory / "guard.jsonl").unlink()  # nobody reads it again


def reported(directory: Path) -> list[Any]:
    """What a page, a study, a round and a caller in Python make of a finished run."""
    run = content.read_runs([directory])[0]
    believed = [run.record[key] for key in ("run_id", "identity", "result", "finished", "prompt", "rope")]
    result = read_result(directory)
    return [run.steps, believed, result.steps, result.losses, lineage.claim(directory, {"seed": 0})["finished"]]


def banks_of(directory: Path) -> None:
    rate = {"value": 0.5, "low": 0.25, "high": 0.75}
    bank = {"startswith": rate, "letter": None, "likelihood": rate, "hit_rate": {"0": rate}}
    jsonl.write_sealed(directory / "banks.json", {"banks": {"true": bank}, "usage": {"0": {"tokens": 9}}})


def figures_of_banks(directory: Path) -> list[Any]:
    found = read_banks(directory)
    return [found["banks"], found["usage"]]


FACT = {"target": [{"sentence": "Ada Lovelace was born in London.", "object": "London", "uuid": "u"}]}
SHAPE = BankShape(4, 6, 32, 0)


def bank_of(directory: Path) -> None:
    bank, mappings, _ = build_bank([as_fact(FACT)] * 3, lambda texts: [[7, 8, 9] for _ in texts], SHAPE)
    write_bank(directory / "bank.pt", bank, mappings, {"source_file": "facts.json"})


def asked_of_bank(directory: Path) -> list[Any]:
    cache = directory / "bank.pt"
    facts = facts_by_uuid(check_mapping(cache), {"u"})
    return [load_bank(cache, SHAPE).tolist(), facts["u"].row, facts["u"].sentence]


KINDS = {
    "checkpoint": (checkpoint_of, resumed), "final": (final_of, evaluated), "rollouts": (rollouts_of, sampled),
    "run under way": (begun_of, continued), "finished run": (finished_of, reported),
    "evaluation of a memory": (banks_of, figures_of_banks), "bank": (bank_of, asked_of_bank),
}  # fmt: skip


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    found = {}
    for kind, (make, read) in KINDS.items():
        directory = tmp_path_factory.mktemp(kind)
        make(directory)
        found[kind] = (directory, read(Path(shutil.copytree(directory, tmp_path_factory.mktemp("read") / "x"))))
    return found


def flip(directory: Path, choose: random.Random) -> Path:
    """Change one bit of one file below a directory; files are alike likely, whatever their size."""
    file = choose.choice(sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size))
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
