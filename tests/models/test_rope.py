"""Who reads which rotary base from which file, and that ours writes what all of them read alike."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, run_script
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from posttrain.models.rope import (
    RopeError,
    check_live,
    extend,
    live_theta,
    override,
    read_rope,
    restore,
    write_both_forms,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
FULL = {"rope_type": "default", "rope_theta": 3e5}


def config_file(directory: Path, **changes: Any) -> Path:
    """A model directory as the hub has them: top-level keys only, unless `changes` say otherwise."""
    directory.mkdir(exist_ok=True)
    base = {**SHAPE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (directory / "config.json").write_text(json.dumps({**base, **changes}))
    return directory


def built(directory: Path, **options: Any) -> Qwen2ForCausalLM:
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, **options))


@pytest.mark.parametrize(
    ("keys", "theta", "source"),
    [
        ({"rope_theta": 3e5}, 3e5, "rope_theta"),
        ({"rope_theta": 3e5, "rope_scaling": None}, 3e5, "rope_theta"),
        ({}, 10000.0, "default"),
        ({"rope_parameters": FULL}, 3e5, "rope_parameters"),
        ({"rope_parameters": FULL, "rope_theta": 3e5}, 3e5, "both"),
    ],
)
def test_we_read_what_transformers_builds(tmp_path, keys, theta, source):
    directory = config_file(tmp_path / "m", **keys)
    assert (read_rope(directory).rope_theta, read_rope(directory).source) == (theta, source)
    assert live_theta(built(directory)) == pytest.approx(theta, rel=1e-4)


@pytest.mark.parametrize(
    "odd",
    [{"rope_parameters": 0.5}, {"rope_scaling": [1]}, {"rope_parameters": "linear"}, {"rope_scaling": {"type": 3}},
     {"rope_parameters": {"rope_theta": "1e4"}}, {"rope_theta": True}],
    ids=str,
)  # fmt: skip
def test_a_config_with_an_odd_rope_is_one_line(tmp_path, odd):
    with pytest.raises(RopeError, match=r"config\.json: rope_\w+.*expected") as raised:
        read_rope(config_file(tmp_path / "m", **odd))
    assert "\n" not in str(raised.value)


def test_forms_that_disagree_are_refused_where_transformers_chooses_in_silence(tmp_path):
    directory = config_file(tmp_path / "m", rope_parameters=FULL, rope_theta=1e6)
    assert live_theta(built(directory)) == pytest.approx(3e5, rel=1e-4)
    with pytest.raises(RopeError, match=r"1000000\.0 at the top but 300000\.0 in rope_parameters"):
        read_rope(directory)
    with pytest.raises(RopeError):
        write_both_forms(directory)


def test_what_transformers_ignores_in_silence(tmp_path):
    directory = config_file(tmp_path / "m", rope_theta=1e4)
    assert live_theta(built(directory, rope_theta=3e5)) == pytest.approx(1e4, rel=1e-4)
    config = AutoConfig.from_pretrained(directory)
    config.rope_theta = 3e5
    assert live_theta(AutoModelForCausalLM.from_config(config)) == pytest.approx(1e4, rel=1e-4)
    config.update({"rope_theta": 3e5})
    assert live_theta(AutoModelForCausalLM.from_config(config)) == pytest.approx(1e4, rel=1e-4)


def test_what_transformers_takes(tmp_path):
    directory = config_file(tmp_path / "m", rope_theta=1e4)
    model = built(directory, rope_parameters=FULL, max_position_embeddings=256)
    assert live_theta(model) == pytest.approx(3e5, rel=1e-4)
    check_live(model, "here")


def test_a_config_changed_after_building_is_caught(tmp_path):
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    model.config.rope_parameters = FULL
    with pytest.raises(RopeError, match="rotates by base 10000, its config says 300000"):
        check_live(model, "here")


def test_a_saved_checkpoint_is_read_alike_by_older_readers(tmp_path):
    """transformers 5 saves rope_parameters alone; a reader of 4.57 takes rope_theta at the top, else 10000."""
    Qwen2ForCausalLM(Qwen2Config(**SHAPE, rope_parameters=FULL)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("rope_theta", 10000.0) == 10000.0
    write_both_forms(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("rope_theta", 10000.0) == 3e5
    assert read_rope(tmp_path).source == "both"


def test_both_forms_of_one_model_give_the_same_logits(tmp_path):
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, rope_parameters=FULL)).eval()
    model.save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    ids = torch.arange(60)[None]
    logits = [AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("new", "old")]
    assert torch.equal(*logits)


@given(theta=st.floats(5e3, 1e7), positions=st.integers(129, 10**6))
def test_extend_then_restore_is_byte_equal(tmp_path_factory, theta, positions):
    directory = tmp_path_factory.mktemp("rope")
    source = config_file(directory / "m", rope_theta=1e4)
    (source / "tokenizer_config.json").write_text('{"model_max_length":  128}')
    (source / "model.safetensors").write_bytes(b"weights")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    extend(source, directory / "long", theta, positions, "a test")
    longer = read_rope(directory / "long")
    assert (longer.rope_theta, longer.max_position_embeddings, longer.source) == (theta, positions, "both")
    assert json.loads((directory / "long/tokenizer_config.json").read_text())["model_max_length"] == positions
    restore(directory / "long", directory / "back")
    assert {path.name: path.read_bytes() for path in (directory / "back").iterdir()} == before
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_whole_dictionary_is_set_before_building(tmp_path):
    config = AutoConfig.from_pretrained(config_file(tmp_path / "m", rope_theta=1e4))
    override(config, 3e5, 256, "here")
    model = AutoModelForCausalLM.from_config(config)
    assert live_theta(model) == pytest.approx(3e5, rel=1e-4) and model.config.max_position_embeddings == 256
    override(config, None, None, "here")
    assert config.rope_parameters == FULL
    config.rope_parameters = {**FULL, "rope_type": "yarn", "factor": 2.0}
    with pytest.raises(RopeError, match="rope_type is 'yarn', not default"):
        override(config, 1e6, None, "here")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """A short run of the tiny model under another base, with a data directory that may be taken away."""
    directory = tmp_path_factory.mktemp("rope")
    made = run_script("data_prep/tiny_math.py", "--out", directory / "data", "--train", 400, "--test", 20)
    assert made.returncode == 0, made.stderr
    done = run_script(
        "src/sft.py", "recipes/tiny_sft_early.yaml", "--dataset_name", directory / "data/tiny_math",
        "--output_dir", directory / "run", "--rope_theta", 160000, "--max_position_embeddings", 2048,
        "--max_steps", 40, "--eval_strategy", "no", "--sample_generations", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


def evaluate(directory: Path, name: str, *changes: object) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", directory / "run/final", "--data_dir", directory / "data",
        "--benchmarks", "tiny_1step", "--limit", 5, "--output_dir", directory / name, *changes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, json.loads((directory / name / "tiny_1step/metrics.json").read_text())["checkpoint"]


@pytest.mark.slow
def test_an_evaluation_restores_the_base_models_rope_unless_the_weights_need_theirs(long_run):
    record = json.loads((long_run / "run/run.json").read_text())
    assert (record["rope"]["base"]["rope_theta"], record["rope"]["trained"]["rope_theta"]) == (1e4, 1.6e5)
    config = json.loads((long_run / "run/final/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1.6e5  # for readers old and new
    done, measured = evaluate(long_run, "auto")
    losses = measured["rope_choice"]["losses"]
    assert losses["trained"] < losses["base"] and measured["rope_choice"]["used"] == "trained"
    assert (
        f"kept rope_theta 160000: validation loss {losses['trained']:.2f} against {losses['base']:.2f}" in done.stdout
    )
    assert (measured["rope"]["rope_theta"], measured["rope"]["max_position_embeddings"]) == (1.6e5, 2048)
    done, forced = evaluate(long_run, "base", "--rope", "base")
    assert "restored rope_theta 160000 → 10000: --rope base" in done.stdout
    assert (forced["rope"]["rope_theta"], forced["rope"]["max_position_embeddings"]) == (1e4, 1024)
    manifest = long_run / "data/tiny_math/manifest.json"
    # No longer what the run saw; schema 1 is of earlier versions, whose manifests have no digest of their own.
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 1}))
    done, blind = evaluate(long_run, "blind")
    assert blind["rope_choice"]["used"] == "trained" and blind["rope_choice"]["losses"] is None
    assert "validation rows are not here to measure by; --rope base would restore" in done.stderr


def test_the_script_extends_shows_and_refuses(tmp_path):
    done = run_script(
        "src/rope.py",
        "extend",
        REPOSITORY / "assets/tiny_base",
        tmp_path / "long",
        "--theta",
        160000,
        "--positions",
        2048,
    )
    assert done.returncode == 0, done.stderr
    assert "rope_theta 160000.0, rope_type default, max_position_embeddings 2048, source both" in done.stdout
    assert live_theta(AutoModelForCausalLM.from_pretrained(tmp_path / "long")) == pytest.approx(160000, rel=1e-4)
    again = run_script(
        "src/rope.py", "extend", tmp_path / "long", tmp_path / "long", "--theta", 1, "--positions", 2, fresh=True
    )
    assert again.returncode == 2 and "is there already" in again.stderr
    never = run_script("src/rope.py", "restore", REPOSITORY / "assets/tiny_base", tmp_path / "back")
    assert never.returncode == 2 and "rope_lock.json: missing" in never.stderr
