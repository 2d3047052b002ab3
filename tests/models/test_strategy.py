"""Which weights train: for every strategy and architecture, frozen tensors stay bit-identical and trained ones move."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, launch, record, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_trainer import CONFIGS, LORA, SIZES, build
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    TrainerCallback,
)

from posttrain.errors import PosttrainError
from posttrain.models import trainable
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import RecipeError, read_recipe
from posttrain.training import stopping
from posttrain.training.resume import trained_already

# Keys of the recipe, what of a trained tensor's name must be there, and what must not.
STRATEGIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "full": ({}, "", "nothing"),
    "lora": (LORA | {"lora_target_modules": ["q_proj", "v_proj"]}, "lora_", "base_layer"),
    "rslora": (LORA | {"use_rslora": True, "lora_dropout": 0.1}, "lora_", "base_layer"),
    "dora": (LORA | {"use_dora": True}, "lora_", "base_layer"),
    "lora_with_frozen_layers": (LORA | {"freeze_layers": 2}, "layers.2.", "layers.0."),
    "first_layers": ({"freeze_layers": 2}, "", "layers.0."),
    "listed_layers": ({"freeze_layers": [1]}, "", "layers.1."),
    "embeddings": ({"freeze_embeddings": True}, "", "embed_tokens"),
    "patterns": ({"freeze_patterns": [r"mlp\.", r"self_attn\.(q|k)_"]}, "", "mlp."),
    "qlora": (LORA | {"load_in_4bit": True}, "lora_", "base_layer"),
    "lora_on_8_bit": (LORA | {"load_in_8bit": True}, "lora_", "base_layer"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_frozen_tensors_are_bit_identical_and_trained_ones_move(models, tmp_path, architecture, name):
    keys, trained, kept = STRATEGIES[name]
    if "load_in" in str(keys):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    trainer = build(models / architecture, tmp_path, keys)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trains = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trains and all(kept not in n for n in trains)
    assert any(trained in n for n in trains)
    trainer.train()
    for n, parameter in trainer.model.named_parameters():
        moved = not torch.equal(before[n], parameter)
        assert moved == (n in trains), n
    counts = trainable.parameter_counts(trainer.model)
    assert sum(part["trainable"] for part in counts.values()) == sum(before[n].numel() for n in trains)


@pytest.mark.slow
def test_two_processes_keep_frozen_layers_and_train_the_others(tiny_data, tmp_path):
    done = launch(
        "accelerate_configs/cpu_2proc.yaml", "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name",
        tiny_data / "tiny_math", "--output_dir", tmp_path / "run", "--max_steps", 2, "--eval_strategy", "no",
        "--sample_generations", 0, "--freeze_layers", 2, "--freeze_embeddings", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trains 394,368 of 854,144 parameters (46.17%)") == 1
    before, after = (
        load_file(path / "model.safetensors") for path in (REPOSITORY / "assets/tiny_base", tmp_path / "run/final")
    )
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == any(part in name for part in ("layers.0.", "layers.1.", "embed"))
    assert json.loads((tmp_path / "run/run.json").read_text())["parameters"]["layer 0"]["trainable"] == 0


def test_four_bit_weights_are_counted_as_weights(models, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    counts = trainable.parameter_counts(build(models / "qwen2", tmp_path, LORA | {"load_in_4bit": True}).model)
    whole = AutoModelForCausalLM.from_config(CONFIGS["qwen2"]).num_parameters()
    assert sum(part["frozen"] for part in counts.values()) == whole


def test_tied_embeddings_freeze_the_output_layer_too(models):
    for architecture, tied in (("qwen2", True), ("llama", False)):
        model = AutoModelForCausalLM.from_pretrained(models / architecture)
        trainable.freeze(model, StrategyOptions(freeze_embeddings=True), "recipe")
        assert model.get_output_embeddings().weight.requires_grad is not tied


def test_the_report_says_what_trains():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    assert trainable.parameter_report(trainable.parameter_counts(model)) == (
        "trains 60,640 of 60,640 parameters (100.00%)"
    )
    trainable.freeze(model, StrategyOptions(freeze_layers=2, freeze_embeddings=True), "recipe")
    assert trainable.parameter_report(trainable.parameter_counts(model)).splitlines() == [
        "trains 25,696 of 60,640 parameters (42.37%)",
        "  embed_tokens        16,384 frozen",
        "  layers 0–1          18,560 frozen",
        "  layer 2             9,280 trainable",
        "  norm                32 trainable",
        "  lm_head             16,384 trainable",
    ]


@pytest.mark.parametrize(
    "options, expected",
    [
        (StrategyOptions(freeze_layers=4), "freeze_layers: no parameter matches"),
        (StrategyOptions(freeze_layers=[0, 3]), "the model has 3 layers"),
        (StrategyOptions(freeze_patterns=["nosuch"]), "freeze_patterns: no parameter matches 'nosuch'"),
        (StrategyOptions(freeze_patterns=["."]), "freeze_patterns: nothing is left to train"),
        (StrategyOptions(freeze_layers=3, freeze_patterns=["norm", "lm_head"], freeze_embeddings=True), "nothing is"),
    ],
)
def test_a_pattern_that_matches_nothing_or_everything_is_an_error(options, expected):
    with pytest.raises(PosttrainError, match=expected):
        trainable.freeze(AutoModelForCausalLM.from_config(CONFIGS["llama"]), options, "recipe")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=4, unique=True), st.booleans())
def test_any_choice_of_layers_freezes_them_alone(layers, embeddings):
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 6, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    trainable.freeze(model, StrategyOptions(freeze_layers=layers, freeze_embeddings=embeddings), "recipe")
    for name, parameter in model.named_parameters():
        frozen = any(f"layers.{i}." in name for i in layers) or (embeddings and "embed_tokens" in name)
        assert parameter.requires_grad is not frozen


def recipe_with(tmp_path: Path, keys: dict[str, Any]) -> list[str]:
    path = tmp_path / "recipe.yaml"
    base = yaml.safe_load((REPOSITORY / "recipes/tiny_sft.yaml").read_text())
    path.write_text(yaml.safe_dump(base | keys))
    return [str(path)]


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({"use_peft": True, "freeze_embeddings": True}, "leaves all weights of its base"),
        ({"use_peft": True, "freeze_patterns": ["mlp"]}, "leaves all weights of its base"),
        ({"freeze_patterns": ["("]}, "not a regular expression"),
        ({"freeze_layers": -1}, "expected 0 or more"),
        ({"freeze_layers": "2"}, r"expected int \| list"),
        ({"early_stopping_patience": 2}, "needs metric_for_best_model"),
        ({"early_stopping_patience": 0, "metric_for_best_model": "eval_loss"}, "expected 1 or more"),
        ({"early_stopping_patience": 2, "metric_for_best_model": "eval_loss", "eval_strategy": "no"}, "needs eval_str"),
        ({"early_stopping_threshold": 0.1}, "needs early_stopping_patience"),
    ],
)
def test_contradictions_are_found_before_anything_loads(tmp_path, keys, expected):
    with pytest.raises(RecipeError, match=expected):
        read_recipe(recipe_with(tmp_path, keys), "sft")


def test_eight_bit_weights_without_their_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for keys in ({"use_peft": True, "load_in_4bit": True}, {"optim": "adamw_bnb_8bit"}):
        with pytest.raises(RecipeError, match="pip install bitsandbytes"):
            read_recipe(recipe_with(tmp_path, keys), "sft")


class Counting(TrainerCallback):
    """For the test below: named in a recipe."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_callbacks_of_a_recipe_are_called_each_step(models, tmp_path):
    trainer = build(models / "qwen2", tmp_path, {"callbacks": ["test_strategy:Counting"]})
    trainer.train()
    (counting,) = [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "Counting"]
    assert counting.steps == 2


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Counting", "expected module.path:Class"),
        ("nosuch.module:Class", "must lie on PYTHONPATH"),
        ("test_strategy:Nosuch", "has no attribute"),
        ("test_strategy:SIZES", "expected a subclass"),
    ],
)
def test_a_callback_that_cannot_be_loaded_is_an_error(name, expected):
    with pytest.raises(PosttrainError, match=expected):
        stopping.check_callbacks(StrategyOptions(callbacks=[name]))


STOPPING = {"early_stopping_patience": 2, "early_stopping_threshold": 1e3}  # nothing ever counts as better
EVALUATING = {
    "max_steps": 12, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
    "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 0.05,
}  # fmt: skip


def test_early_stopping_ends_with_the_best_weights_and_resumes_with_its_patience(models, tmp_path):
    whole = build(models / "qwen2", tmp_path / "whole", STOPPING, **EVALUATING)
    whole.train()
    evaluations = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert whole.state.global_step == 2 * len(evaluations) == 6  # one to compare with, and two without a gain
    best = Path(whole.state.best_model_checkpoint)
    assert best.name == f"checkpoint-{2 * (1 + evaluations.index(min(evaluations)))}"
    assert whole.state.best_metric == min(evaluations) < evaluations[-1]
    weights = load_file(best / "model.safetensors")
    assert all(torch.equal(weights[n], p) for n, p in whole.model.named_parameters() if n in weights)

    # Killed while patience was running out, it stops where the whole run stopped.
    resumed = build(models / "qwen2", tmp_path / "whole", STOPPING, **EVALUATING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert resumed.state.global_step == 6
    # Killed after it had run out, it trains no more; killed before, it does.
    assert trained_already(resumed, tmp_path / "whole/checkpoint-6") == best
    assert trained_already(resumed, tmp_path / "whole/checkpoint-4") is None


def test_rotation_keeps_the_best_checkpoint(models, tmp_path):
    trainer = build(models / "qwen2", tmp_path, {}, **EVALUATING, save_total_limit=2)
    trainer.train()
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-12", Path(trainer.state.best_model_checkpoint).name}


# What the schedules say at step i of n after w warm-up steps; transformers' names.
CLOSED_FORMS: dict[str, Callable[[int, int, int], float]] = {
    "linear": lambda i, n, w: i / w if i < w else (n - i) / (n - w),
    "cosine": lambda i, n, w: i / w if i < w else 0.5 * (1 + math.cos(math.pi * (i - w) / (n - w))),
    "constant": lambda i, n, w: 1.0,
    "constant_with_warmup": lambda i, n, w: min(1.0, i / w),
}


@pytest.mark.parametrize("warmup", [4, 0.2])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_learning_rates_are_those_of_the_closed_form(models, tmp_path, name, warmup):
    steps = {"max_steps": 20, "warmup_steps": warmup, "lr_scheduler_type": name, "learning_rate": 0.5}
    trainer = build(models / "qwen2", tmp_path, {"freeze_layers": 3}, **steps)
    trainer.create_optimizer_and_scheduler(20)
    for step in range(20):
        expected = 0.5 * CLOSED_FORMS[name](step, 20, 4)
        assert trainer.lr_scheduler.get_last_lr() == pytest.approx([expected] * 2, abs=1e-12)  # with decay and without
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def trained(models: Path, out: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    trainer = build(models / "qwen2", out, {}, **{"max_steps": 3, "learning_rate": 1e-3, **arguments})
    trainer.train()
    return dict(trainer.model.named_parameters())


def test_four_steps_accumulated_are_one_step_of_four_rows(models, tmp_path):
    whole = trained(models, tmp_path / "1x4", per_device_train_batch_size=4)
    parts = trained(models, tmp_path / "4x1", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for name, parameter in whole.items():
        torch.testing.assert_close(parts[name], parameter, rtol=1e-4, atol=2e-5)


def test_clipping_bounds_the_gradient_of_a_step(models, tmp_path):
    """Under SGD the step of the first update is learning rate × gradient, so its norm is the bound."""
    steps = {"max_steps": 1, "optim": "sgd", "weight_decay": 0.0, "learning_rate": 1.0}
    before = dict(AutoModelForCausalLM.from_pretrained(models / "qwen2").named_parameters())
    for bound in (1e-2, 1e-1):
        after = trained(models, tmp_path / str(bound), max_grad_norm=bound, **steps)
        squared = sum((after[name] - parameter).square().sum().item() for name, parameter in before.items())
        assert math.sqrt(squared) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw_bnb_8bit"])
def test_small_optimizers_move_the_weights_and_resume_exactly(models, tmp_path, optimizer):
    if optimizer != "adafactor":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    steps = {"max_steps": 4, "optim": optimizer, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = build(models / "llama", tmp_path, {}, **steps)
    before = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    whole.train()
    resumed = build(models / "llama", tmp_path, {}, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, before[name])


@pytest.mark.slow
def test_a_run_that_stops_early_ends_whole_with_its_best_checkpoint(tiny_data, tmp_path):
    out = tmp_path / "run"
    command = [
        "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name", tiny_data / "tiny_math", "--output_dir", out,
        "--sample_generations", 0, "--eval_steps", 2, "--save_steps", 2, "--max_steps", 20, "--logging_steps", 2,
        "--early_stopping_patience", 2, "--early_stopping_threshold", 100.0, "--metric_for_best_model", "eval_loss",
        "--load_best_model_at_end", "true", "--learning_rate", 0.5,
    ]  # fmt: skip
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    result = record(out)["result"]
    assert (result["steps"], result["exit_reason"]) == (6, "stopped by a callback")
    best, weights = out / result["best_checkpoint"], (out / "final/model.safetensors").read_bytes()
    assert weights == (best / "model.safetensors").read_bytes()
    # Killed before it could write final/, the same command writes it and trains no more.
    shutil.rmtree(out / "final")
    (out / "run.json").write_text(json.dumps({**record(out), "finished": None, "result": None}))
    again = run_script(*command)
    assert again.returncode == 0, again.stderr
    assert (out / "final/model.safetensors").read_bytes() == weights
    assert record(out)["result"]["steps"] == 6
