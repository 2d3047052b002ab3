"""Nothing that is read is run: no code of a model repository, and no pickle in any file of a checkpoint."""

import ast
import contextlib
import functools
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, record

from posttrain.errors import PosttrainError

SOURCES = [path for folder in ("src", "data_prep", "examples", "speed") for path in (REPOSITORY / folder).rglob("*.py")]
# A generation config and an adapter's config are JSON alone: their loaders know no code of a repository.
WITHOUT_CODE = ("GenerationConfig", "PeftModel")


@functools.cache
def all_calls() -> list[tuple[str, str | None, ast.Call]]:
    """Every call of our code: where it stands, the name of the method or function, the call itself."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", None))
                found.append((f"{path.relative_to(REPOSITORY)}:{node.lineno}", called, node))
    return found


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of a method or function of these names, and where they stand."""
    return ((where, call) for where, name, call in all_calls() if name in names)


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def owner(call: ast.Call) -> str | None:
    """`torch` of `torch.load(…)`."""
    return getattr(getattr(call.func, "value", None), "id", None)


def test_no_model_brings_code_along():
    """Left unset, transformers asks on a terminal, and `y` runs the code of the repository."""
    loading = calls("from_pretrained", "from_config", "pipeline")
    found = [(where, call) for where, call in loading if owner(call) not in WITHOUT_CODE]
    assert len(found) > 8
    assert [where for where, call in found if not says(call, "trust_remote_code", False)] == []


def test_no_pickle_is_executed():
    loads = [(where, call) for where, call in calls("load") if owner(call) == "torch"]
    assert len(loads) > 2
    assert [where for where, call in loads if not says(call, "weights_only", True)] == []
    runs_code = ("pickle", "cloudpickle", "dill", "joblib", "marshal")
    assert [where for where, call in calls("load", "loads", "Unpickler") if owner(call) in runs_code] == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(REPOSITORY / "assets/tiny_base", directory, ignore=shutil.ignore_patterns("complete.json"))
    return directory


def add_code(model: Path, marker: Path, model_type: str) -> None:
    """Code in a model directory, of which its config and its tokenizer say that it is theirs."""
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil:\n    pass\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        values = json.loads((model / name).read_text())
        values |= {"auto_map": classes} | ({"model_type": model_type} if name == "config.json" else {})
        values["tokenizer_class"] = "Evil"
        (model / name).write_text(json.dumps(values))


@pytest.mark.parametrize("model_type", ["qwen2", "evil"])
def test_code_beside_a_model_is_not_run(model, tmp_path, monkeypatch, model_type):
    """Even where somebody sits at a terminal and would say yes."""
    from posttrain.data.tokenise import open_tokenizer
    from posttrain.models.loading import load_model, read_checkpoint

    marker = tmp_path / "run"
    add_code(model, marker, model_type)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (lambda: open_tokenizer(model), lambda: load_model(read_checkpoint(str(model)), "float32")):
        try:
            load()
        except PosttrainError as error:
            assert "\n" not in str(error)
    assert not marker.exists()


def test_a_kernel_of_a_repository_is_not_fetched(model):
    from posttrain.models.loading import read_config

    config = json.loads((model / "config.json").read_text()) | {"attn_implementation": "somebody/kernel"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(PosttrainError, match="'somebody/kernel' is a repository with code"):
        read_config(str(model))


class Evil:
    """Pickles to a call that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file that evil code would write; it must not be there in the end."""
    path = tmp_path / "code was run"
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists()  # it is evil
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_makes_tensors_alone_whatever_its_caller_asks_for(tmp_path, marker, monkeypatch, zipped):
    """DeepSpeed loads with weights_only=False."""
    from posttrain.training.safe_loading import FORCE, FORCE_NOT, tensors_only

    path = tmp_path / "states.pt"
    torch.save({"optimizer": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setenv(FORCE_NOT, "1")
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert os.environ[FORCE_NOT] == "1" and FORCE not in os.environ


def test_checkpoints_of_deepspeed_are_tensors_and_its_own_values(tmp_path, marker):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    from posttrain.training.safe_loading import tensors_only

    engine, path = TorchCheckpointEngine(), tmp_path / "states.pt"
    scalers = [LossScaler(2.0), DynamicLossScaler(4.0, 2.0, 1000, 1.0, 1)]
    state = {"scalers": scalers, "stage": ZeroStageEnum.gradients, "place": fragment_address(3, 4), "p": torch.ones(2)}
    engine.save(state, str(path))
    with tensors_only():
        back = engine.load(str(path))
        assert (back["stage"], back["place"]) == (ZeroStageEnum.gradients, fragment_address(3, 4))
        assert [scaler.cur_scale for scaler in back["scalers"]] == [2.0, 4.0]
        engine.save(state | {"more": Evil(marker)}, str(path))
        with pytest.raises(pickle.UnpicklingError):
            engine.load(str(path))


@pytest.mark.parametrize("name", ["rng_state.pth", "rng_state_1.pth", "scheduler.pt", "scaler.pt"])
def test_a_checkpoint_with_code_is_passed_over_before_anything_is_loaded(tmp_path, marker, name):
    """Its mark vouches for it: who can write the file can write the mark."""
    from transformers import TrainerState

    from posttrain.models import checkpoints
    from posttrain.training.resume import settle

    for step in (2, 4):
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        TrainerState(global_step=step, max_steps=9).save_to_json(str(directory / "trainer_state.json"))
        (directory / "optimizer.pt").touch()
        torch.save({"state": Evil(marker)} if step == 4 else {}, directory / name)
        checkpoints.mark_complete(directory)
    assert settle(tmp_path).name == "checkpoint-2"
    assert (tmp_path / "damaged-checkpoint-4").is_dir()


def test_the_index_of_a_sharded_checkpoint_names_tensors_alone(tmp_path, marker):
    """torch unpickles it with everything allowed."""
    import torch.distributed.checkpoint as sharded

    from posttrain.training.safe_loading import metadata_fault

    state = {"weight": torch.ones(3, 2), "groups": [{"lr": 0.1}], "step": torch.tensor(3.0), "name": "adam"}
    sharded.save(state, checkpoint_id=str(tmp_path / "optimizer_0"), no_dist=True)
    index = tmp_path / "optimizer_0/.metadata"
    assert metadata_fault(index) is None
    index.write_bytes(pickle.dumps({"weight": Evil(marker)}))
    assert "no part of a checkpoint's index" in metadata_fault(index)


def test_banks_keys_and_memories_hold_tensors_alone(tmp_path, marker):
    from posttrain.memory.bank.cache import BankShape, load_bank
    from posttrain.memory.build import set_keys
    from posttrain.memory.files import load_published

    for content in ({"keys": Evil(marker)}, Evil(marker), [1], {"model_state_dict": 3}, {3: 4}, "text"):
        path = tmp_path / "file.pt"
        torch.save(content, path)
        for load in (
            lambda path=path: load_bank(path, BankShape(4, 2, 10, 0)),
            lambda path=path: load_published(path, torch.nn.Linear(2, 2)),
            lambda path=path: set_keys(path, SimpleNamespace(layers=torch.nn.ModuleDict())),
        ):
            with contextlib.suppress(PosttrainError):
                load()


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"\x80\x02.", b"(lp0\n."])
def test_files_that_are_no_pickles_are_one_line(tmp_path, content):
    from posttrain.memory.bank.cache import BankShape, load_bank
    from posttrain.memory.build import set_keys
    from posttrain.memory.files import load_published

    path = tmp_path / "file.pt"
    path.write_bytes(content)
    keys = torch.nn.Parameter(torch.zeros(2, 4, 2))
    memory = SimpleNamespace(layers={"0": SimpleNamespace(memory_gate=SimpleNamespace(keys=keys))})
    for name in ("file.pt", "file.safetensors"):
        path.rename(tmp_path / name)
        path = tmp_path / name
        for load in (
            lambda path=path: load_bank(path, BankShape(4, 2, 10, 0)),
            lambda path=path: load_published(path, torch.nn.Linear(2, 2)),
            lambda path=path: set_keys(path, memory),
        ):
            with pytest.raises(PosttrainError) as raised:
                load()
            assert "\n" not in str(raised.value)


def test_a_copy_of_a_model_takes_nothing_from_outside(tmp_path, model):
    from posttrain.models.rope import RopeError, extend, restore

    (tmp_path / "private").write_text("a key")
    (model / "notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(RopeError, match="outside of the model"):
        extend(model, tmp_path / "a", 5000.0, 64, "")
    (model / "rope_lock.json").write_text('{"files": {"config.json": "{}"}}')
    with pytest.raises(RopeError, match="outside of the model"):
        restore(model, tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_links_of_the_hubs_cache_are_followed(tmp_path, model):
    from posttrain.models.rope import extend

    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        shutil.copy2(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    extend(snapshot, tmp_path / "out", 5000.0, 64, "")
    weights = tmp_path / "out/model.safetensors"
    assert not weights.is_symlink() and weights.samefile(blobs / "model.safetensors")


@pytest.mark.parametrize("name", ["..", ".", "a/../../b"])
def test_a_study_writes_inside_its_directory(tmp_path, monkeypatch, name):
    from posttrain.pipelines.study.study import StudyError, read_study

    monkeypatch.chdir(REPOSITORY)
    study = yaml.safe_load((REPOSITORY / "studies/tiny_strategies.yaml").read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study | {"variants": {name: {"seed": 1}}}))
    with pytest.raises(StudyError, match="not a name for a cell"):
        read_study(tmp_path / "s.yaml")


@pytest.mark.slow
def test_a_resumed_run_does_not_run_what_its_optimizer_holds(tiny_data, tmp_path, marker, monkeypatch):
    """The mark vouches for the file: who can write the one can write the other."""
    import posttrain
    from posttrain.models import checkpoints
    from posttrain.training.base_trainer import CheckpointError

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", "accelerate_configs/cpu.yaml")
    out = tmp_path / "run"
    keys = {
        "dataset_name": str(tiny_data / "tiny_math"), "output_dir": str(out), "max_steps": 2, "logging_steps": 1,
        "save_steps": 1, "eval_strategy": "no", "load_best_model_at_end": False, "sample_generations": 0,
        "metric_for_best_model": None, "packing": False, "num_train_examples": 8,
    }  # fmt: skip
    posttrain.train("recipes/tiny_sft.yaml", keys)
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoint-2")
    run = record(out) | {"finished": None, "result": None}
    (out / "run.json").write_text(json.dumps(run))
    good = (out / "checkpoint-1/optimizer.pt").read_bytes()
    torch.save({"state": Evil(marker), "param_groups": []}, out / "checkpoint-1/optimizer.pt")
    checkpoints.mark_complete(out / "checkpoint-1")
    with pytest.raises(CheckpointError, match="holds what is no tensor or plain value"):
        posttrain.train("recipes/tiny_sft.yaml", keys)
    (out / "checkpoint-1/optimizer.pt").write_bytes(good)
    checkpoints.mark_complete(out / "checkpoint-1")
    assert posttrain.train("recipes/tiny_sft.yaml", keys).steps == 2
