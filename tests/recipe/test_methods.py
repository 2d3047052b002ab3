"""One row a trainer: what is derived from it, and that nothing is left out."""

import io
from contextlib import redirect_stdout

import pytest
from conftest import REPOSITORY

from posttrain.errors import PosttrainError
from posttrain.generation.vllm.adapter import serve_flags
from posttrain.recipe import contradictions, grpo_contradictions, rules
from posttrain.recipe.methods import METHODS, find_method, wrong_trainer
from posttrain.recipe.reader import RecipeError, help_text, read_recipe
from posttrain.recipe.rules import out_of_range
from posttrain.recipe.schema import Field, read_fields

OWN = {(name, field.name): field for name, method in METHODS.items() for field in read_fields(method.classes).values()}


def test_a_trainer_is_a_row_and_a_script_and_every_recipe_has_both():
    for name in METHODS:
        assert (REPOSITORY / "src" / f"{name}.py").is_file()
        assert f"src/{name}.py recipes/x.yaml" in METHODS[name].command("recipes/x.yaml")


def test_an_unknown_trainer_is_an_error_and_never_another_ones_rules(tmp_path):
    with pytest.raises(PosttrainError, match="trainer: 'ppo': unknown; known trainers: sft, grpo"):
        find_method("ppo")
    with pytest.raises(PosttrainError, match="trainer: 'ppo': unknown"):
        read_recipe(["recipes/tiny_sft.yaml"], "ppo")
    assert "there is no src/ppo.py" in wrong_trainer("x.yaml:1", "ppo", "sft", tmp_path / "x.yaml")
    assert "there is no src/['a'].py" in wrong_trainer("x.yaml:1", ["a"], "sft", tmp_path / "x.yaml")
    assert wrong_trainer("x.yaml:1", "eval", "sft", tmp_path / "x.yaml").endswith(
        f"run python src/eval.py {tmp_path}/x.yaml"
    )


def test_every_rule_belongs_to_a_trainer():
    modules = (contradictions, grpo_contradictions)
    written = {value for module in modules for name, value in vars(module).items() if name.endswith("_contradictions")}
    used = {rule for method in METHODS.values() for rule in method.rules}
    assert {rule for rule in written if not rule.__name__.startswith("_")} == used


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_required_keys_are_fields_that_a_recipe_may_set(method):
    assert set(method.required_keys) <= set(method.fields)
    assert not [key for key in method.required_keys if rules.refusal(key, None)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_ranges_of_the_libraries_name_fields_that_are_not_ours(method):
    for field in read_fields(method.classes).values():
        assert method.fields[field.name] is not None and method.fields[field.name].help == field.help


def test_the_sets_of_ranges_hold_no_key_of_ours_alone():
    library = {name for method in METHODS.values() if method.library for name in method.fields}
    library -= {name for _, name in OWN}
    shared = {
        "seed",
        "temperature",
        "top_p",
        "max_length",
        "num_iterations",
        "eos_token",
    }  # ours in some, TRL's in others
    ranged = rules.POSITIVE | rules.LARGEST.keys() | rules.AT_LEAST_ZERO | rules.HELP.keys()
    assert ranged <= library | shared


def test_every_number_of_ours_has_a_range():
    bare = [
        key for key, field in OWN.items()
        if {"int", "float"} & set(field.annotation.replace("list[int]", "").split(" | "))
        and (field.minimum, field.maximum, field.above) == (None, None, None)
    ]  # fmt: skip
    assert not bare


def test_defaults_lie_in_their_range_and_among_their_choices():
    for field in OWN.values():
        if field.default not in ("", "None"):
            value = eval(field.default)
            assert out_of_range(field, value) is None, field
            assert not field.choices or value in field.choices, field


@pytest.mark.parametrize(
    ("limits", "value", "expected"),
    [
        ({"minimum": 0}, -1, "expected 0 or more"),
        ({"minimum": 0}, 0, None),
        ({"above": 0}, 0, "expected more than 0"),
        ({"above": 0}, 0.1, None),
        ({"minimum": 0, "maximum": 1}, 1.5, "expected at most 1"),
        ({"minimum": 0, "maximum": 1}, 1, None),
        ({}, float("nan"), "expected a finite number"),
        ({}, float("-inf"), "expected a finite number"),
        ({"minimum": 1}, True, None),
        ({"minimum": 1}, [0], None),
        ({"minimum": 1}, None, None),
    ],
)
def test_a_range_is_told_in_words(limits, value, expected):
    assert out_of_range(Field("x", "float", "", "", **limits), value) == expected


@pytest.mark.parametrize("name", METHODS)
def test_help_ends_its_sentences(name):
    text = help_text(METHODS[name])
    assert f"src/{name}.py" in text.splitlines()[0]
    assert all(
        f"  {key}: {METHODS[name].fields[key].annotation} (required)" in text for key in METHODS[name].required_keys
    )
    assert not [field.name for field in METHODS[name].fields.values() if rules.purpose(field.help or ".")[-1] in ";,"]


def test_another_script_that_takes_the_recipes_is_named_in_its_help():
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as shown:
        read_recipe(["--help"], "expert_iteration", "rejection_sft")
    assert (
        shown.getvalue().startswith("usage: POSTTRAIN_ACCELERATE_CONFIG=")
        and "src/rejection_sft.py" in shown.getvalue()
    )


def test_our_own_help_is_sentences():
    assert not [key for key, field in OWN.items() if not rules.purpose(field.help).endswith(".")]


def test_a_refused_key_is_not_suggested():
    with pytest.raises(RecipeError) as caught:
        read_recipe(["recipes/tiny_sft.yaml", "--chat_template", "x"], "sft")
    (fault,) = caught.value.faults
    assert "did you mean" not in fault and "chat_template.jinja" in fault
    near = [argument for key in sorted(rules.REFUSED) for argument in (f"--{key[:-1]}X", "1")]
    with pytest.raises(RecipeError) as caught:
        read_recipe([str(REPOSITORY / "recipes/tiny_sft.yaml"), *near], "sft")
    assert not [fault for fault in caught.value.faults if fault.split("did you mean ")[-1][:-1] in rules.REFUSED]


AHEAD = {
    "use_vllm": True, "vllm_mode": "server", "vllm_importance_sampling_correction": True, "num_iterations": 1,
    "gradient_accumulation_steps": 4, "generation_ahead": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, []),
        ({"steps_per_generation": 4}, []),
        ({"generation_ahead": 0, "use_vllm": False, "num_iterations": 2}, []),
        ({"use_vllm": False}, ["vllm_mode: server"]),
        ({"vllm_mode": "colocate"}, ["vllm_mode: server"]),
        ({"vllm_importance_sampling_correction": False}, ["vllm_importance_sampling_correction: true"]),
        ({"dynamic_sampling": True}, ["dynamic_sampling: false"]),
        ({"steps_per_generation": 8}, ["steps_per_generation: 4"]),
        ({"steps_per_generation": 2, "num_iterations": 2}, ["num_iterations: 1", "steps_per_generation: 4"]),
    ],
)
def test_generation_ahead_is_one_update_old_or_refused(change, needs):
    faults = grpo_contradictions.ahead_contradictions("r.yaml", {**AHEAD, **change})
    assert len(faults) == len(needs)
    assert all(f"generation_ahead: 1: needs {need}" in fault for fault, need in zip(faults, needs, strict=True))


ALONE = {
    "use_vllm": True, "vllm_mode": "server", "use_peft": True, "lora_r": 16, "vllm_lora_sync": "adapter",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, []),
        ({"lora_r": 512}, []),
        ({"vllm_lora_sync": "merged", "use_peft": False, "use_vllm": False}, []),
        ({"use_peft": False}, ["use_peft: true"]),
        ({"vllm_mode": "colocate"}, ["use_vllm: true and vllm_mode: server"]),
        ({"lora_r": 513}, ["lora_r: at most 512"]),
        ({"lora_modules_to_save": ["lm_head"], "use_dora": True}, ["lora_modules_to_save: null", "use_dora: false"]),
    ],
)
def test_an_adapter_is_sent_alone_where_vllm_serves_it_or_refused(change, needs):
    faults = grpo_contradictions.adapter_contradictions("r.yaml", {**ALONE, **change})
    assert len(faults) == len(needs)
    assert all(f"vllm_lora_sync: adapter: needs {need}" in fault for fault, need in zip(faults, needs, strict=True))


@pytest.mark.parametrize(("rank", "flag"), [(1, "1"), (4, "8"), (16, "16"), (100, "128"), (512, "512")])
def test_a_server_for_adapters_has_the_next_rank_that_vllm_knows(rank, flag):
    assert serve_flags({"lora_r": rank})[-1] == flag
