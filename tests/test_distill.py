"""Distillation and the value head in small: vocabularies, figures over batches, orders that resuming finds again."""

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.distill import VocabularyError, check_vocabularies
from posttrain.losses import explained_variance
from posttrain.recipe import RecipeError, read_recipe
from posttrain.repeat import EpochRepeatSampler
from posttrain.value import Moments, moments_of


def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")


def test_a_padded_vocabulary_is_the_same_and_another_token_is_not():
    ours, theirs = tokenizer(), tokenizer()
    n = len(ours)
    check_vocabularies(ours, theirs, n, n + 128, "teacher")
    with pytest.raises(VocabularyError, match=f"token id {n - 1} is beyond a vocabulary of {n - 1} rows"):
        check_vocabularies(ours, theirs, n, n - 1, "teacher")
    theirs.add_tokens(["<another>"])
    with pytest.raises(VocabularyError, match=rf"'<another>': id {n} there, None here; a teacher must share"):
        check_vocabularies(ours, theirs, n + 9, n + 9, "teacher")


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 1)), min_size=2, max_size=30), st.integers(1, 29))
def test_explained_variance_of_batches_is_that_of_all_their_tokens(pairs, cut):
    values, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    moments = Moments()
    for part in (slice(None, cut), slice(cut, None)):
        moments.add(moments_of(values[part], returns[part]))
    expected = explained_variance(values, returns)
    assert moments.explained_variance() == pytest.approx(expected, abs=1e-4, rel=1e-4, nan_ok=True)


def test_an_epoch_has_its_own_order_whatever_came_before():
    sampler = EpochRepeatSampler(range(9), 1, 3, 2, True, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    resumed = EpochRepeatSampler(range(9), 1, 3, 2, True, seed=0)
    resumed.set_epoch(1)
    assert list(resumed) == second != first
    assert first[:3] == first[3:6] and sorted(first) == sorted([*range(9)] * 2)


@pytest.mark.parametrize(
    "recipe, override, fault",
    [
        ("tiny_distill", ["--beta", "0.5"], "beta: 0.5: not read with on_policy: false"),
        ("tiny_distill", ["--kd_alpha", "1.5"], "kd_alpha: 1.5: expected at most 1"),
        ("tiny_distill_on_policy", ["--packing", "true"], "packing: True: not read with on_policy: true"),
        ("tiny_distill_on_policy", ["--on_policy", "false"], "max_length: missing; expected with on_policy: false"),
        ("tiny_value", ["--num_iterations", "3"], "save_steps: 100: lies between two iterations on one batch"),
        ("tiny_dpo", ["--padding_free", "true"], "not taken from a recipe"),
    ],
)
def test_keys_that_nothing_would_read_are_faults(recipe, override, fault):
    trainer = recipe.split("_")[1]
    with pytest.raises(RecipeError, match=fault):
        read_recipe([str(REPOSITORY / f"recipes/{recipe}.yaml"), *override], trainer)
