"""Nothing that is read is run: no code of a model repository, and no pickle in any file of a checkpoint."""

import ast
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

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
