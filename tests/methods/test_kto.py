"""KTO's rows: the other answers are TRL's own, the two kinds are weighed, and recipes that cannot work are refused."""

from pathlib import Path

import pytest
from conftest import must, record, run_script
from hypothesis import given
from hypothesis import strategies as st
from trl import KTOConfig
from verified import write_verified

from posttrain.data.encode import RowError
from posttrain.methods.kto import check_balance, with_others_answers
from posttrain.recipe.reader import RecipeError, read_recipe

RECIPE = "recipes/tiny_kto.yaml"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(2, 7))
def test_every_prompt_has_the_answer_to_another_one_of_its_batch(answers, batch):
    rows = [{"prompt_ids": [i], "completion_ids": [i, answer]} for i, answer in enumerate(answers)]
    paired = with_others_answers(rows, batch)
    assert [{k: v for k, v in row.items() if k != "KL_completion_ids"} for row in paired] == rows
    for start in range(0, len(rows), batch):
        own, other = rows[start : start + batch], [row["KL_completion_ids"] for row in paired[start : start + batch]]
        assert other == [own[i - 1]["completion_ids"] for i in range(len(own))]  # TRL's add_kl_completion_ids
        assert sorted(other) == sorted(row["completion_ids"] for row in own)


@pytest.mark.parametrize(
    ("right", "wrong", "weight", "said"),
    [
        (10, 10, 1.0, ""), (12, 10, 1.0, ""), (10, 40, 1.0, "desirable_weight: 4.00"), (10, 40, 4.0, ""),
        (30, 10, 1.0, "3.00 to 1"),
    ],
)  # fmt: skip
def test_kinds_that_weigh_differently_are_told_with_the_weight_that_balances_them(right, wrong, weight, said, capsys):
    arguments = KTOConfig(output_dir="o", desirable_weight=weight, bf16=False, use_cpu=True)
    check_balance([True] * right + [False] * wrong, arguments, Path("d"), train=True)
    printed = capsys.readouterr().err
    assert said in printed and bool(printed) == bool(said)
    with pytest.raises(RowError, match="expected both"):
        check_balance([True] * right, arguments, Path("d"), train=True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss_type", "sigmoid", "expected one of kto, apo_zero_unpaired"),
        ("per_device_train_batch_size", "1", "expected 2 or more"),
        ("train_sampling_strategy", "random", "expected sequential"),
        ("loss_typ", "kto", "did you mean"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_a_model_loads(key, value, said):
    with pytest.raises(RecipeError, match=said):
        read_recipe([RECIPE, f"--{key}", value], "kto")


@pytest.mark.slow
def test_pairs_are_refused_and_a_run_says_what_it_used(tiny_data, tmp_path):
    (tmp_path / "data").mkdir()
    write_verified(tmp_path / "data", tiny_data)
    values = ("--model_name_or_path", "assets/tiny_base", "--eos_token", "<|im_end|>", "--max_steps", 2)
    adapter = ("--use_peft", "true", "--precompute_ref_log_probs", "false")
    run = ("src/kto.py", RECIPE, *values, *adapter, "--eval_strategy", "no")
    refused = run_script(*run, "--dataset_name", tmp_path / "data/few_pairs", "--output_dir", tmp_path / "o")
    assert refused.returncode == 2 and "has no column 'outcome'" in refused.stderr and "Traceback" not in refused.stderr
    must(run_script(*run, "--dataset_name", tmp_path / "data/few_outcomes", "--output_dir", tmp_path / "run"))
    assert record(tmp_path / "run")["inputs"]["dataset"]["used"] == {"train": 48}
    assert (tmp_path / "run/final/adapter_model.safetensors").is_file()
