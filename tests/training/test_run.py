"""A run: it is finished only where it took a step, keeps its final checkpoint, and fills batches from few prompts."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY, record
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerState
from trl.trainer.utils import RepeatSampler

import posttrain
from posttrain import lineage
from posttrain.errors import PosttrainError
from posttrain.models import checkpoints
from posttrain.training.base_trainer import CheckpointError
from posttrain.training.final import restore_final
from posttrain.training.repeat_sampler import EpochRepeatSampler

TINY_BASE = REPOSITORY / "assets/tiny_base"


def order(sampler: EpochRepeatSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(rows=st.integers(1, 12), batch=st.integers(1, 12), group=st.integers(1, 3), repeats=st.integers(1, 3))
def test_few_prompts_fill_a_generation_by_turns_and_enough_are_drawn_as_trl_draws(rows, batch, group, repeats):
    sampler = EpochRepeatSampler(range(rows), group, batch, repeats, True, 7)
    seen: Counter[int] = Counter()
    for epoch in range(rows):
        indices = order(sampler, epoch)
        assert len(indices) == len(sampler) > 0
        assert indices == order(sampler, epoch)  # of the epoch alone
        seen.update(indices)
        if rows < batch:
            assert set(indices) == set(range(rows))
            counts = Counter(indices).values()
            assert max(counts) - min(counts) <= group * repeats
    if rows < batch:
        assert len(set(seen.values())) == 1  # over as many epochs as rows, none comes more often than another
    else:
        assert len(sampler) == len(RepeatSampler(range(rows), group, batch, repeats, True, 7))
        assert max(seen) < rows


def test_few_prompts_are_said_to_be_repeated(capsys):
    EpochRepeatSampler(range(3), 4, 16)
    assert "3 prompts are fewer than the 16 of one batch" in capsys.readouterr().out
    EpochRepeatSampler(range(16), 4, 16)
    assert not capsys.readouterr().out


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run directory as a finished run leaves it: `final/` and the checkpoints of steps 2 and 4."""
    result = {"steps": 4, "best_checkpoint": "checkpoint-2"}
    rope = {"rope_theta": 10000.0, "rope_type": "default", "max_position_embeddings": 1024}
    run = {"run_id": "a", "prompt": "chat", "eos_token": "<|im_end|>", "rope": {"base": rope, "trained": rope}}
    run |= {"result": result, "arguments": {"load_best_model_at_end": False}, "finished": lineage.now()}
    (tmp_path / "run.json").write_text(json.dumps(run))
    for step in (2, 4):
        directory = tmp_path / f"checkpoint-{step}"
        shutil.copytree(TINY_BASE, directory)
        (directory / "model.safetensors").write_bytes(b"weights of step %d" % step)
        TrainerState(global_step=step, max_steps=4).save_to_json(str(directory / "trainer_state.json"))
        (directory / "optimizer.pt").write_text("moments")
        checkpoints.mark_complete(directory)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "final")
    for name in ("trainer_state.json", "optimizer.pt"):
        (tmp_path / "final" / name).unlink()
    (tmp_path / "final/lineage.json").write_text(json.dumps(run))
    checkpoints.mark_complete(tmp_path / "final")
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_whole_final_checkpoint_is_left_alone(finished):
    before = contents(finished)
    restore_final(finished, record(finished))
    assert contents(finished) == before


@pytest.mark.parametrize("harm", ["gone", "without weights", "cut off", "unmarked"])
def test_a_lost_final_checkpoint_comes_back_from_the_last_weights(finished, harm, capsys):
    final = finished / "final"
    weights = final / "model.safetensors"
    if harm == "gone":
        shutil.rmtree(final)
    elif harm == "without weights":
        weights.unlink()
    elif harm == "cut off":
        weights.write_bytes(weights.read_bytes()[:5])
    else:
        (final / checkpoints.MARK).unlink()
    restore_final(finished, record(finished))
    assert checkpoints.is_complete(final)
    assert weights.read_bytes() == b"weights of step 4"
    assert not {"trainer_state.json", "optimizer.pt"} & {path.name for path in final.iterdir()}
    assert lineage.read_lineage(final) == record(finished)
    assert (finished / "final.damaged-1").is_dir() == (harm != "gone")
    assert "restored from checkpoint-4" in capsys.readouterr().out


def test_the_best_weights_come_back_where_the_run_kept_them(finished):
    run = record(finished)
    run["arguments"]["load_best_model_at_end"] = True
    shutil.rmtree(finished / "final")
    restore_final(finished, run)
    assert (finished / "final/model.safetensors").read_bytes() == b"weights of step 2"


def test_what_cannot_be_restored_says_what_to_do(finished):
    shutil.rmtree(finished / "final")
    (finished / "checkpoint-4/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is gone, and .*checkpoint-4.* put a copy of final/ back, or remove"):
        restore_final(finished, record(finished))
    assert not (finished / "final").exists()


@pytest.mark.slow
def test_a_run_without_a_step_is_not_finished_and_a_lost_final_is_trained_or_restored(
    tiny_data, tmp_path, monkeypatch, capsys
):
    """One recipe through its life: no batch, one step, its final checkpoint lost, and lost beyond repair."""
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(REPOSITORY / "accelerate_configs/cpu.yaml"))
    keys = {
        "dataset_name": str(tiny_data / "tiny_math"), "output_dir": str(tmp_path / "run"), "max_steps": 1,
        "logging_steps": 1, "save_steps": 1, "eval_strategy": "no", "load_best_model_at_end": False,
        "sample_generations": 0, "metric_for_best_model": None, "packing": False, "num_train_examples": 8,
    }  # fmt: skip
    large = {"per_device_train_batch_size": 16, "dataloader_drop_last": True}
    for _ in range(2):  # the second start is not told that there is nothing to do
        with pytest.raises(PosttrainError, match=r"no step was taken: 8 rows fill no batch .* 16 .* not finished"):
            posttrain.train("recipes/tiny_sft.yaml", keys | large | {"output_dir": str(tmp_path / "none")})
    assert record(tmp_path / "none")["finished"] is None and not (tmp_path / "none/final").exists()

    posttrain.train("recipes/tiny_sft.yaml", keys)
    whole = contents(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/final")
    posttrain.train("recipes/tiny_sft.yaml", keys)
    assert "restored from checkpoint-1" in capsys.readouterr().out
    assert contents(tmp_path / "run/final") == whole


@pytest.mark.slow
def test_one_prompt_is_enough_to_learn_from(early_sft, whole_tiny_data, tmp_path, monkeypatch, capsys):
    """One-example RLVR, and on-policy distillation with fewer prompts than a batch holds."""
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", str(REPOSITORY / "accelerate_configs/cpu.yaml"))
    keys = {
        "dataset_name": str(whole_tiny_data / "tiny_math"), "model_name_or_path": str(early_sft), "max_steps": 2,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 24,
        "save_steps": 2,
    }  # fmt: skip
    grpo = {"num_generations": 2, "guard_steps": 0, "probe": "warn", "output_dir": str(tmp_path / "grpo")}
    for few in (1, 3):
        changes = grpo | {"num_train_examples": few, "output_dir": str(tmp_path / f"grpo_{few}")}
        assert posttrain.train("recipes/tiny_grpo.yaml", keys | changes).steps == 2
        assert f"{few} prompts are fewer than the 4 of one batch" in capsys.readouterr().out
    distill = {"teacher_model_name_or_path": str(early_sft), "num_train_examples": 3, "output_dir": str(tmp_path / "d")}
    assert posttrain.train("recipes/tiny_distill_on_policy.yaml", keys | distill).steps == 2
