"""The strict reader: every fault at once, each on one line that says where, what and what to do."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.reader import RecipeError, read_entries, read_recipe

GOOD = """\
trainer: sft
model_name_or_path: assets/tiny_base
dataset_name: data/tiny_math
prompt: chat
learning_rate: 1.0e-5
max_length: 256
seed: 0
output_dir: outputs/x
"""


def faults_of(tmp_path: Path, text: str, *overrides: str, trainer: str = "sft") -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe([str(path), *overrides], trainer)
    return caught.value.faults


def test_a_good_recipe_is_read_with_its_text_and_digest(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    recipe = read_recipe([str(path)], "sft")
    assert recipe.values["learning_rate"] == 1e-5
    assert recipe.text == GOOD
    assert len(recipe.sha256) == 64


def test_the_command_line_wins_and_is_typed_by_the_field(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    overrides = ["--learning_rate", "1e-6", "--seed=7", "--packing", "true", "--report_to", "[wandb, tensorboard]"]
    recipe = read_recipe([str(path), *overrides, "--run_name", "12"], "sft")
    assert recipe.values["learning_rate"] == 1e-6
    assert recipe.values["seed"] == 7
    assert recipe.values["packing"] is True
    assert recipe.values["report_to"] == ["wandb", "tensorboard"]
    assert recipe.values["run_name"] == "12"


@pytest.mark.parametrize("text", ["null", "~", "Null"])
def test_null_is_null_on_the_command_line_too(tmp_path, text):
    (fault,) = faults_of(tmp_path, GOOD, "--model_revision", text)
    assert fault == "command line: model_revision: None: expected str, got NoneType"
    path = tmp_path / "recipe.yaml"
    assert read_recipe([str(path), "--run_name", text, "--num_train_examples", text], "sft").values["run_name"] is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rat: 1.0", "unknown key; did you mean learning_rate?"),
        ("xyzzy: 1", "unknown key; --help lists the known ones"),
        ("weight_decay: 1e-2", "write it with a point and a sign, like 1.0e-5"),
        ("num_train_epochs: [1, 2]", "expected float, got list"),
        ("packing: 'yes'", "expected bool, got str"),
        ("save_total_limit: true", "expected int | None, got bool"),
        ("packing_strategy: nonsense", "expected one of bfd, bfd_split, wrapped"),
        ("lr_scheduler_type: cosinus", "expected one of linear, cosine"),
        ("save_strategy: sometimes", "expected one of"),
        ("prompt: poetry", "expected one of chat, qwen_math_cot"),
        ("weight_decay: -1.0", "expected 0 or more"),
        ("per_device_train_batch_size: 0", "expected more than 0"),
        ("weight_decay: .nan", "expected a finite number"),
        ("torch_dtype: bfloat16", "this key is now dtype"),
        ("max_seq_length: 512", "this key is now max_length"),
        ("warmup_ratio: 0.1", "this key is now warmup_steps"),
        ("overwrite_output_dir: true", "it was removed"),
        ("max_prompt_length: 512", "it was removed"),
        ("gradient_checkpointing: true", "dynamo_config.gradient_checkpointing"),
        ("attn_implementation: sdpa", "dynamo_config.attn_implementation"),
        ("bf16: true", "mixed_precision"),
        ("hub_token: abc", "no secrets"),
        ("trust_remote_code: true", "never run"),
        ("model_init_kwargs: {a: 1}", "loaded by posttrain.models.trainable"),
        ("data_seed: 5000000000", "expected at most"),
        ("resume_from_checkpoint: x", "always resumes"),
        ("env: {A: b}", "sets no environment"),
    ],
)
def test_each_fault_names_its_line_key_value_and_remedy(tmp_path, line, expected):
    text = GOOD.replace("prompt: chat\n", "") if line.startswith("prompt") else GOOD
    faults = faults_of(tmp_path, text + line + "\n")
    key = line.split(":")[0]
    assert any(f"recipe.yaml:{text.count(chr(10)) + 1}: {key}: " in fault and expected in fault for fault in faults), (
        faults
    )


def test_all_faults_come_at_once(tmp_path):
    faults = faults_of(tmp_path, GOOD + "learning_rat: 3\nweight_decay: x\n", "--sed", "1", "stray", "--max_steps")
    assert len(faults) == 5, faults


@pytest.mark.parametrize("key", ["trainer", "model_name_or_path", "dataset_name", "prompt", "seed", "output_dir"])
def test_a_missing_key_is_named(tmp_path, key):
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    assert any(f"{key}: missing" in fault for fault in faults_of(tmp_path, text))
    if key != "trainer":
        assert faults_of(tmp_path, text + f"{key}: null\n")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("packing: true\npacking_strategy: wrapped\n", "cut rows in the middle"),
        ("eval_strategy: steps\n", "eval_steps: missing"),
        ("sample_generations: 2\n", "needs eval_strategy"),
        ("use_peft: true\nrandom_init: true\n", "learns nothing"),
        ("load_in_4bit: true\n", "use_peft: true"),
    ],
)
def test_contradictions_between_keys(tmp_path, lines, expected):
    assert any(expected in fault for fault in faults_of(tmp_path, GOOD + lines))


def test_a_server_is_told_the_text_that_ends_a_completion(tmp_path):
    text = (REPOSITORY / "recipes/qwen_math_grpo.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(re.sub(r"generation_kwargs: .*", "generation_kwargs: {min_tokens: 4}", text))
    with pytest.raises(RecipeError, match=r"prompt r1_zero ends at its text </answer>; write \{stop: \['</answer>'\]"):
        read_recipe([str(tmp_path / "recipe.yaml")], "grpo")


def test_a_recipe_of_another_trainer_names_the_command(tmp_path):
    (fault,) = faults_of(tmp_path, GOOD.replace("trainer: sft", "trainer: eval"))
    assert "src/sft.py runs recipes of trainer 'sft'; run python src/eval.py" in fault
    (fault,) = faults_of(tmp_path, GOOD.replace("trainer: sft", "trainer: grpo"))
    assert "'grpo'" in fault


def test_a_key_written_twice_is_a_fault(tmp_path):
    assert any("seed: written twice" in fault for fault in faults_of(tmp_path, GOOD + "seed: 1\n"))


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [1", "\t- x", "just words"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    (fault,) = faults_of(tmp_path, text)
    assert "recipe.yaml:" in fault


def test_a_missing_recipe_and_a_flag_in_its_place(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe([str(tmp_path / "none.yaml")], "sft")
    with pytest.raises(RecipeError, match="the recipe comes first"):
        read_recipe(["--seed", "1"], "sft")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_a_recipe_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "recipe.yaml"
    path.write_bytes(content)
    try:
        read_entries(path)
    except RecipeError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["--num_workers", "2", "--server", "http://127.0.0.1:8000"],
            "num_workers: 2: with a server",
        ),
        (["--num_workers", "0"], "num_workers: 0: expected 1 or more"),
        (["--num_workers", "two"], "num_workers: 'two': expected Literal"),
    ],
)
def test_sampling_processes_are_a_number_or_auto_and_not_beside_a_server(overrides, expected):
    recipe = str(REPOSITORY / "recipes/eval_greedy.yaml")
    with pytest.raises(RecipeError, match=expected):
        read_recipe([recipe, *overrides], "eval")
    assert read_recipe([recipe, "--num_workers", "2"], "eval").values["num_workers"] == 2
