"""What a rehearsal changes of a recipe and a config, its small model, its rows, and how it names a fault."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, config_copy
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.data.manifest import check_dataset
from posttrain.data.rows import read_parquet
from posttrain.errors import PosttrainError
from posttrain.hardware import parse_config
from posttrain.pipelines.rehearsal import here, small_data, stand_in
from posttrain.pipelines.rehearsal.faults import FAILED, LEFT_OUT, PASSED, Findings, Lines, NotHere
from posttrain.pipelines.rehearsal.rehearse import Asked, data_commands, rehearse
from posttrain.pipelines.rehearsal.stages import why
from posttrain.plan.memory.training_sizes import Topology
from posttrain.plan.shapes import read_shape, recipe_that_writes
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import Entry, override_arguments, read_recipe

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
TINY = REPOSITORY / "assets/tiny_base"
by_name = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def values_of(path, *overrides):
    trainer = yaml.safe_load(path.read_text())["trainer"]
    return read_recipe([str(path), *overrides], trainer).values


@by_name
def test_what_is_changed_of_a_shipped_recipe_leaves_a_recipe(path, tmp_path):
    values = values_of(path)
    if not METHODS[values["trainer"]].library:
        return
    changes = here.overrides_here(values, tmp_path / "model", tmp_path)
    small = values_of(path, *override_arguments(changes))
    assert small["max_steps"] == here.GENERATIONS * small["save_steps"]
    assert {key: small[key] for key in changes} == changes  # none of them is read back as something else
    if values.get("vllm_mode") == "server":
        served = values_of(path, *override_arguments(here.served_here(values, changes)))
        assert served["use_vllm"] and served.get("generation_kwargs") == values.get("generation_kwargs")


@by_name
def test_the_config_of_a_recipes_header_is_there(path):
    assert here.config_of_header(path).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_for_this_machine_is_one_and_says_what_differs(path):
    config = parse_config(str(path), path.read_text())
    ours, differences = here.accelerate_here(config)
    topology = Topology.of_config(parse_config("ours", yaml.safe_dump(ours)))
    assert topology.use_cpu and topology.processes == min(2, config["num_processes"])
    assert topology.checkpointing == Topology.of_config(config).checkpointing
    assert bool(differences) == (not config["use_cpu"])


@pytest.mark.parametrize(
    "changes, steps",
    [({}, 3), ({"num_iterations": 2}, 6), ({"steps_per_generation": 8}, 6), ({"steps_per_generation": 2}, 3)],
)
def test_checkpoints_lie_between_generations_as_in_the_recipe(changes, steps, tmp_path):
    path = REPOSITORY / "recipes/tiny_grpo.yaml"
    values = values_of(path, *override_arguments({**changes, "save_steps": 16, "guard_steps": 16}))
    small = here.overrides_here(values, tmp_path, tmp_path)
    assert small["max_steps"] == steps
    values_of(path, *override_arguments({**changes, **small}))  # or the reader would refuse it


@pytest.mark.parametrize("tied", [True, False])
def test_the_end_of_a_small_model_is_likely_and_other_tokens_are_too(tied):
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=5000,
        **stand_in.NARROW,
        num_hidden_layers=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    stand_in.make_end_likely(model, 17)
    ids = torch.randint(0, 5000, (4, 32))
    share = model(ids).logits.softmax(-1)[..., 17]
    assert share.min() > 0.02 and share.max() < 0.5


def test_a_small_model_has_the_tokenizer_the_end_and_the_positions_of_its_source(tmp_path):
    source = stand_in.find_source("Qwen/Qwen2.5-1.5B", stand_in.Places(tokenizer=TINY))
    words = stand_in.write_stand_in(source, tmp_path, None, "<|im_end|>")
    config, shape = AutoConfig.from_pretrained(tmp_path), read_shape("Qwen/Qwen2.5-1.5B")
    assert config.model_type == "qwen2" and config.vocab_size == shape.vocabulary == 151_936
    assert config.max_position_embeddings == shape.positions and config.tie_word_embeddings is shape.tied
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(TINY)
    assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
    assert ours.eos_token == "<|im_end|>" and "28 of 1536" in words


def test_a_model_that_a_recipe_will_write_is_what_that_recipe_starts_from(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = stand_in.find_source("outputs/tiny_sft_early/final", stand_in.Places())
    assert source.directory == Path("assets/tiny_base") and source.eos_token == "<|im_end|>"
    assert recipe_that_writes(Path("outputs/gsm8k_sft_128/final"))["model_name_or_path"] == "Qwen/Qwen2.5-1.5B"
    with pytest.raises(PosttrainError, match="--tokenizer DIR"):
        stand_in.find_source("Qwen/Qwen2.5-72B", stand_in.Places())


@pytest.mark.parametrize("trainer", ["sft", "grpo", "dpo", "reward_model", "kto", "value"])
def test_made_up_rows_and_a_few_of_them_are_datasets(trainer, tmp_path):
    small_data.make_up(trainer, "chat", tmp_path / "all")
    manifest = check_dataset(tmp_path / "all")
    small_data.write_some(tmp_path / "all", manifest, tmp_path / "few")
    few = check_dataset(tmp_path / "few")
    assert (
        few["files"]["train.parquet"]["rows"] == small_data.ROWS["train"] < manifest["files"]["train.parquet"]["rows"]
    )
    rows = read_parquet(tmp_path / "few/train.parquet")
    assert list(rows[0]) == list(read_parquet(tmp_path / "all/train.parquet")[0])
    if "outcome" in rows[0]:
        assert {row["outcome"] for row in rows} == {0.0, 1.0}


LINES = Lines(
    "r.yaml", {key: Entry(key, "v", f"r.yaml:{n}") for n, key in enumerate(("prompt", "max_length", "seed"), 3)}
)


@pytest.mark.parametrize(
    "text, keys, said",
    [
        ("r.yaml: max_length: 9: too much", (), "r.yaml:4: max_length: 9: too much"),
        ("r.yaml:7: other: as it was", (), "r.yaml:7: other: as it was"),
        ("row 1 is longer than max_length", ("prompt",), "r.yaml:4: max_length: v: row 1 is longer than max_length"),
        ("a prompt of any seed", (), "r.yaml: a prompt of any seed"),
        ("the template ends otherwise", ("eos_token", "prompt"), "r.yaml:3: prompt: v: the template ends otherwise"),
        ("nothing known", ("eos_token",), "r.yaml: eos_token: (not set): nothing known"),
    ],
)
def test_a_fault_is_named_by_the_key_that_it_speaks_of(text, keys, said):
    assert LINES.located(text, keys) == said


@given(st.text(), st.lists(st.sampled_from(["prompt", "seed", "none"])))
def test_any_text_is_a_fault(text, keys):
    assert text.removeprefix("r.yaml: ").removeprefix("v: ") in LINES.located(text, keys)


def test_checks_pass_fail_or_are_left_out():
    findings = Findings(LINES)
    for error in (None, NotHere("no vLLM"), PosttrainError("max_length: no"), FileNotFoundError("x")):
        with findings.check("one", ("prompt",)) as told:
            told.text = "good"
            if error:
                raise error
    assert [check.state for check in findings.checks] == [PASSED, LEFT_OUT, FAILED, FAILED]
    assert [check.detail for check in findings.failed] == ["r.yaml:4: max_length: no", "r.yaml:3: prompt: v: x"]


def test_a_fault_of_the_accelerate_config_is_named_by_its_line(tmp_path):
    config = config_copy(tmp_path, "cpu", toggles={"attn_implementation": "flash"})
    recipe = REPOSITORY / "recipes/tiny_sft.yaml"
    findings = rehearse(Asked(recipe, config, tmp_path / "out", made_up=True, paper=True))
    (fault,) = findings.failed
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if text.startswith("dynamo_config"))
    assert fault.detail.startswith(f"{config}:{line}: dynamo_config") and "'flash'" in fault.detail


def test_the_commands_that_prepare_a_recipes_data_are_those_of_its_header():
    assert data_commands(REPOSITORY / "recipes/tiny_dpo.yaml") == [
        "make demo", "python src/sample.py recipes/tiny_sample.yaml",
        "python data_prep/preference_pairs.py outputs/tiny_samples --out data/tiny_pairs",
    ]  # fmt: skip


def test_what_a_failed_command_said_is_its_error_line_or_the_end_of_its_traceback():
    assert why("$ x\nnoise\nerror: one\n       two\nmore") == "one two"
    assert why("$ x\nTraceback\n  File\nValueError: that") == "Traceback File ValueError: that"
    assert why("$ x\n") == "it said nothing"
