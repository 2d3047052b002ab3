"""Whatever stands in a file that is read back: it is read, or one line says what is wrong with it.

POSTTRAIN_FUZZ=100000 gives every target so many examples instead of a few.
"""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from finished import GRADED, SETTINGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainerState

from posttrain import digests, jsonl, lineage
from posttrain.api import read_result
from posttrain.data.manifest import check_dataset
from posttrain.errors import PosttrainError, printable
from posttrain.evaluation import results
from posttrain.evaluation.comparison import compare, table
from posttrain.evaluation.reference import find_reference, setting_of
from posttrain.hardware import parse_config
from posttrain.memory.files import read_description
from posttrain.methods.grpo.guard import read_guard
from posttrain.models import checkpoints, rope
from posttrain.models.source import check_model
from posttrain.pipelines import rollouts
from posttrain.pipelines.study.study import read_study
from posttrain.recipe.reader import read_recipe
from posttrain.report import content
from posttrain.training.callbacks import forget_after
from posttrain.training.safe_loading import unreadable

EXAMPLES = int(os.environ.get("POSTTRAIN_FUZZ", "25"))
ROPE = {"rope_theta": 1e4, "rope_type": "default", "max_position_embeddings": 64}
RUN = {
    "run_id": "a", "identity": {"seed": 0}, "finished": "now", "result": {"steps": 2, "best_metric": None},
    "prompt": "chat", "eos_token": None, "rope": {"base": ROPE, "trained": ROPE},
    "inputs": {"dataset": {}, "model": {"name": "m"}},
}  # fmt: skip
METRICS = json.loads(json.dumps({**SETTINGS, **results.compute_metrics(GRADED)}))
CANDIDATE = {
    "text": "2",
    "tokens": 1,
    "finish_reason": "stop",
    "answer": "2",
    "verdict": "correct",
    "logprob": None,
    "entropy": 0.5,
}
ROLLOUT = {"id": "a", "prompt": [{"role": "user", "content": "?"}], "gold": "2", "candidates": [CANDIDATE]}
MEMORY = {"layers": [0], "knowledge_num": 4, "knowledge_length": 2, "knowledge_dim": 4, "pad_id": 0}
SAMPLED = {"index": 0, "text": "a", "tokens": 1, "finish_reason": "stop"}


def evaluation(directory: Path) -> None:
    """A finished evaluation of an earlier version, for which no mark vouches."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "settings.json").write_text(json.dumps(SETTINGS))
    (directory / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in GRADED))
    (directory / "metrics.json").write_text(json.dumps(METRICS))


def read_evaluation(path: Path) -> None:
    """As every command reads it that takes an evaluation."""
    found = content.read_evaluations([path.parent.parent])
    content.comparison_table(found)
    metrics = results.read_metrics(path.parent)
    results.table([metrics])
    setting_of(metrics)
    table([compare(path.parent, path.parent)])
    find_reference(metrics)


def read_run(path: Path) -> None:
    (path.parent / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    read_result(path.parent)
    content.read_runs([path.parent])
    lineage.claim(path.parent, {"seed": 0})


def read_trainer_state(path: Path) -> None:
    if unreadable(path.parent) is None:
        TrainerState.load_from_json(str(path))


def read_lineage(path: Path) -> None:
    lineage.read_lineage(path.parent)
    rope.base_rope(str(path.parent), ROPE)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def as_lines(value: Any) -> bytes:
    return b"".join(as_json(line) + b"\n" for line in (value if isinstance(value, list) else [value]))


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode(errors="replace")


def recipe_of(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


Target = tuple[str, Any, Callable[[Any], bytes], Callable[[Path], Any]]
TARGETS: dict[str, Target] = {
    "settings": ("e/x/settings.json", SETTINGS, as_json, lambda path: results.rebuild(path.parent)),
    "samples": ("e/x/samples.jsonl", GRADED, as_lines, lambda path: results.rebuild(path.parent)),
    "metrics": ("e/x/metrics.json", METRICS, as_json, read_evaluation),
    "mark of results": ("e/x/complete.json", {"metrics.json": {"bytes": 3, "xxh3_128": "0"}}, as_json, read_evaluation),
    "partial samples": (
        "e/x/samples.partial.jsonl", [SAMPLED], as_lines,
        lambda path: results.Result(path.parent, SETTINGS).sampled(),
    ),
    "run": ("r/run.json", RUN, as_json, read_run),
    "lineage": ("final/lineage.json", RUN, as_json, read_lineage),
    "metrics of a run": ("r/metrics.jsonl", [{"step": 1}], as_lines, lambda path: forget_after(path, 1)),
    "guard": ("r/guard.jsonl", [{"step": 1, "accuracy": 0.5, "correct": [1, None]}], as_lines, read_guard),
    "mark": ("c/checkpoint-1/complete.json", {"optimizer.pt": 3}, as_json, lambda path: checkpoints.fault(path.parent)),
    "state": ("c/trainer_state.json", vars(TrainerState(global_step=1, max_steps=2)), as_json, read_trainer_state),
    "adapter": (
        "a/adapter_config.json", {"base_model_name_or_path": "m/m"}, as_json,
        lambda path: check_model(str(path.parent)),
    ),
    "rope": (
        "m/config.json", {"max_position_embeddings": 64, "rope_parameters": ROPE}, as_json,
        lambda path: rope.read_rope(path.parent),
    ),
    "lock of rope": (
        "m/rope_lock.json", {"before": ROPE, "files": {}}, as_json,
        lambda path: rope.base_values(path.parent),
    ),
    "memory": ("m/memory.json", {"config": MEMORY, "model": "m"}, as_json, lambda path: read_description(path.parent)),
    "rollouts": (
        "s/rollouts.jsonl", [ROLLOUT], as_lines,
        lambda path: list(rollouts.read_rollouts(path.parent, False)),
    ),
    "partial rollouts": (
        "s/rollouts.partial.jsonl", [ROLLOUT], as_lines,
        lambda path: rollouts.RolloutFile(path.parent, {}).done(),
    ),
    "manifest": (
        "d/manifest.json", {"files": {"a.parquet": {"sha256": "0", "rows": 1}}, "source": {}}, as_json,
        lambda path: check_dataset(path.parent),
    ),
    "recipe": ("r.yaml", recipe_of("recipes/tiny_sft.yaml"), as_yaml, lambda path: read_recipe([str(path)], "sft")),
    "evaluation recipe": (
        "r.yaml", recipe_of("recipes/tiny_eval.yaml"), as_yaml,
        lambda path: read_recipe([str(path), "--model", "m/m"], "eval"),
    ),
    "machine": (
        "a.yaml", recipe_of("accelerate_configs/zero2.yaml"), as_yaml,
        lambda path: parse_config(str(path), path.read_text(errors="replace")),
    ),
    "study": ("s.yaml", recipe_of("studies/tiny_strategies.yaml"), as_yaml, read_study),
}  # fmt: skip

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["\ud800", "$x$", "../..", "\u2028", "9" * 400, "", "checkpoint-1", 10**30, -1, "%s{}", "[[[", "\x1b[2J"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def changed(value: Any, odd: Any, choose: random.Random) -> Any:
    """The value with something else, or nothing, in one of its places."""
    value, place = copy.deepcopy(value), choose.choice(places(value))
    if not place:
        return odd
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if choose.random() < 0.3:
        del holder[place[-1]]
    elif choose.random() < 0.2 and isinstance(holder, dict):
        holder[str(odd)[:20]] = holder.pop(place[-1])
    else:
        holder[place[-1]] = odd
    return value


PIECES = (b"", b"\xff", b'"', b"{", b"9" * 30, b"\x00", b",", b"\\ud800", b"\n")


def damaged(content: bytes, choose: random.Random) -> bytes:
    """Bytes with a few of them changed, cut out or put in."""
    content = bytearray(content)
    for _ in range(choose.randrange(1, 4)):
        at = choose.randrange(len(content) + 1)
        content[at : at + choose.choice((0, 1, 1, 9))] = choose.choice(
            (b"", b"\xff", b'"', b"{", b"9" * 30, b"\x00", b",", b"\\ud800", b"\n")
        )
    return bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_stands_in_a_file(place, name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("POSTTRAIN_ACCELERATE_CONFIG", "accelerate_configs/cpu.yaml")
    relative, good, write, read = TARGETS[name]
    path = place / name / relative

    @settings(
        max_examples=EXAMPLES if name != "study" else max(4, EXAMPLES // 10),
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(odd=ODD, seed=st.integers(0, 2**32), bytewise=st.booleans())
    def fuzz(odd: Any, seed: int, bytewise: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if relative.startswith("e/"):
            (path.parent / digests.MARK).unlink(missing_ok=True)
            evaluation(path.parent)
        choose = random.Random(seed)
        try:
            whole = write(good if bytewise else changed(good, odd, choose))
        except (yaml.YAMLError, RecursionError):
            return
        path.write_bytes(damaged(whole, choose) if bytewise else whole)
        try:
            read(path)
        except PosttrainError as error:
            said = printable(str(error).replace("\n       ", ""))  # a recipe's faults are a line each
            assert len(said) < 20_000 and "\n" not in said, said[:300]

    fuzz()


@settings(max_examples=4 * EXAMPLES)
@given(ODD)
def test_a_value_has_its_own_shape(value):
    """The checker of shapes ends, and finds nothing wrong with what is of the shape."""
    assert jsonl.mismatch(value, type(value)) in (None, jsonl.mismatch(value, float))
    jsonl.mismatch(value, METRICS)
