"""recipes/schema.json is current, takes every recipe, and refuses what the reader refuses of a key alone."""

import json

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe import rules
from posttrain.recipe.json_schema import recipe_schema
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import Entry, entry_faults

FILE = REPOSITORY / "recipes/schema.json"
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
CHECKER = jsonschema.Draft7Validator(recipe_schema())
GOOD = yaml.safe_load((REPOSITORY / "recipes/tiny_sft.yaml").read_text())


def test_the_file_is_what_make_schema_writes():
    jsonschema.Draft7Validator.check_schema(recipe_schema())
    assert json.loads(FILE.read_text()) == recipe_schema(), "options have changed: make schema"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_good(path):
    assert not list(CHECKER.iter_errors(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("name", METHODS)
def test_every_key_that_may_be_set_is_described(name):
    properties = recipe_schema()["definitions"]["recipes"][name]["properties"]
    assert set(properties) == {key for key in METHODS[name].fields if not rules.refusal(key, None)}


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": "ppo"},
        {"learning_rat": 1.0},
        {"learning_rate": 0},
        {"learning_rate": "1e-5"},
        {"too_long": "cut"},
        {"seed": 3.7},
        {"seed": -1},
        {"bf16": True},
        {"num_train_examples": 0},
        {"eval_strategy": "sometimes"},
        {"max_length": None},
    ],
    ids=str,
)
def test_a_fault_is_underlined(change):
    assert list(CHECKER.iter_errors(GOOD | change))


def test_a_missing_key_is_underlined():
    assert [error.message for error in CHECKER.iter_errors({k: v for k, v in GOOD.items() if k != "seed"})]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text("ab", max_size=2), st.lists(st.integers()),
    st.dictionaries(st.text("ab"), st.integers(), max_size=1),
)  # fmt: skip


@given(
    st.sampled_from(sorted(METHODS)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(sorted(METHODS[name].fields)))
    ),
    VALUES,
)
def test_schema_and_reader_agree_about_a_key(key, value):
    name, field = key
    if rules.refusal(field, None) or field == "trainer" or (value is None and field in METHODS[name].required_keys):
        return
    if isinstance(value, float) and value.is_integer():
        return  # JSON has one kind of number: 1.0 is an integer there
    schema = CHECKER.schema["definitions"]["recipes"][name]["properties"][field]
    checker = jsonschema.Draft7Validator({**schema, "definitions": CHECKER.schema["definitions"]})
    assert checker.is_valid(value) == (not entry_faults(Entry(field, value, "x"), METHODS[name].fields))
