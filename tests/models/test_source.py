"""A model directory is whole before anything is made of it: weights, configuration and a vocabulary."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY

from posttrain.data.encode import load_tokenizer
from posttrain.data.manifest import Source, write_dataset
from posttrain.data.rows import chat_row
from posttrain.data.sources import tiny_facts
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import PosttrainError
from posttrain.models.source import ModelError, adapter_base, check_model

TINY_BASE = REPOSITORY / "assets/tiny_base"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that no mark vouches for, so that its files may be changed."""
    directory = tmp_path / "model"
    shutil.copytree(TINY_BASE, directory, ignore=shutil.ignore_patterns("complete.json"))
    return directory


def as_slow(model: Path) -> None:
    """The same vocabulary in the two files of byte-level BPE."""
    bpe = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    (model / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in bpe["merges"]))
    (model / "tokenizer.json").unlink()


def with_vocabulary(model: Path, size: int) -> None:
    """A tokenizer.json that kept the first tokens only."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] |= {"vocab": dict(list(tokenizer["model"]["vocab"].items())[:size]), "merges": []}
    path.write_text(json.dumps(tokenizer))


def test_vocab_and_merges_are_a_vocabulary(model):
    as_slow(model)
    check_model(str(model))
    text = "25*2=50. The answer is 50."
    assert open_tokenizer(model)(text).input_ids == open_tokenizer(TINY_BASE)(text).input_ids


def test_a_vocabulary_of_words_that_says_what_it_does_not_know_is_whole(tmp_path):
    tiny_facts.make_tokenizer().save_pretrained(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("home of ada berg is")["input_ids"]) == "home of ada berg is"


@pytest.mark.parametrize("gone", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_model_without_vocabulary_is_refused_before_torch(model, gone):
    for name in gone:
        (model / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        check_model(str(model))
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        check_model(str(model), needs_weights=False)


@pytest.mark.parametrize("left", ["vocab.json", "merges.txt"])
def test_half_of_a_slow_vocabulary_is_none(model, left):
    as_slow(model)
    (model / ({"vocab.json", "merges.txt"} - {left}).pop()).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        check_model(str(model))


@pytest.mark.parametrize("size", [0, 3, 20])
def test_a_tokenizer_that_loses_text_is_refused(model, size):
    with_vocabulary(model, size)
    with pytest.raises(PosttrainError, match="the vocabulary is missing or damaged"):
        open_tokenizer(model)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "1.0"', "\x00\x01"])
def test_a_damaged_tokenizer_is_one_line(model, content):
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(PosttrainError, match="the tokenizer cannot be read") as raised:
        load_tokenizer(str(model), None, None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": ""}']
)
def test_an_adapter_names_its_base(model, content):
    (model / "adapter_config.json").write_text(content)
    (model / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        check_model(str(model))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        adapter_base(model)


OUT = "OUT"  # stands for a directory of the test's own
COMMANDS = {  # every script that takes a model, with the option that names it last
    "sft": ["src/sft.py", "recipes/tiny_sft.yaml", "--model_name_or_path"],
    "grpo": ["src/grpo.py", "recipes/tiny_grpo.yaml", "--model_name_or_path"],
    "dpo": ["src/dpo.py", "recipes/tiny_dpo.yaml", "--model_name_or_path"],
    "kto": ["src/kto.py", "recipes/tiny_kto.yaml", "--model_name_or_path"],
    "reward_model": ["src/reward_model.py", "recipes/tiny_reward_model.yaml", "--model_name_or_path"],
    "value": ["src/value.py", "recipes/tiny_value.yaml", "--model_name_or_path"],
    "distill": ["src/distill.py", "recipes/tiny_distill.yaml", "--model_name_or_path"],
    "teacher": [
        "src/distill.py", "recipes/tiny_distill.yaml", "--model_name_or_path", TINY_BASE,
        "--teacher_model_name_or_path",
    ],
    "memory_sft": ["src/memory_sft.py", "recipes/tiny_memory.yaml", "--model_name_or_path"],
    "expert_iteration": ["src/expert_iteration.py", "recipes/tiny_ei.yaml", "--model_name_or_path"],
    "sample": ["src/sample.py", "recipes/tiny_sample.yaml", "--model_name_or_path"],
    "eval": ["src/eval.py", "recipes/tiny_eval.yaml", "--model"],
    "chat": ["src/chat.py"],
    "serve": ["src/serve.py"],
    "filter_traces": [
        "data_prep/filter_traces.py", "assets/tiny_base/config.json", "--max-tokens", "9", "--licence", "mit",
        "--out", OUT, "--decontaminate", "none", "--tokenizer",
    ],
    "knowledge_cache": ["data_prep/knowledge_cache.py", "--cache", OUT, "--tokenizer"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_script_says_so(model, name, tmp_path, monkeypatch):
    (model / "tokenizer.json").unlink()
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", [str(tmp_path / OUT if part is OUT else part) for part in [*COMMANDS[name], model]])
    main = runpy.run_path(COMMANDS[name][0])["main"]
    with pytest.raises(PosttrainError, match=rf"^{model}: (has no tokenizer\.json|its tokenizer turns)"):
        main()


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    runpy.run_path(str(words[0]))["main"]()


@pytest.mark.parametrize("gone", ["removed", "emptied"])
def test_an_adapter_without_vocabulary_is_not_merged(model, gone, tmp_path, monkeypatch):
    """Its base has one; what training did to the tokenizer lies with the adapter, and would be lost."""
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(TINY_BASE)}))
    (model / "adapter_model.safetensors").touch()
    (model / "tokenizer.json").unlink()
    if gone == "emptied":
        (model / "tokenizer.json").touch()
    with pytest.raises(PosttrainError, match=rf"^{model}: has no tokenizer\.json"):
        run_main(monkeypatch, "src/merge.py", model, tmp_path / OUT)
    assert not (tmp_path / OUT).exists()


@pytest.mark.parametrize("option", [True, False], ids=["by an option", "by the manifest"])
def test_a_page_on_data_needs_a_vocabulary(model, option, tmp_path, monkeypatch):
    """Lengths of an empty tokenizer would all be the template's."""
    row = chat_row("What is 1 + 1?", "It is \\boxed{2}.", "2", "s")
    named = str(TINY_BASE) if option else str(model)
    write_dataset(tmp_path / "data", {"train": [row]}, Source("s", "none"), 0, {}, named)
    (model / "tokenizer.json").unlink()
    asked = ["--tokenizer", model] if option else []
    with pytest.raises(PosttrainError, match=rf"^{model}: its tokenizer turns"):
        run_main(monkeypatch, "src/data_report.py", tmp_path / "data", "--out", tmp_path / OUT, *asked)
    assert not (tmp_path / OUT).exists()


@pytest.mark.parametrize("asked", [["MODEL"], [TINY_BASE, "--compare", "MODEL"]], ids=["chat", "chat --compare"])
def test_nobody_chats_with_a_model_without_vocabulary(model, asked, monkeypatch):
    (model / "tokenizer.json").unlink()
    with pytest.raises(PosttrainError, match=rf"^{model}: has no tokenizer\.json"):
        run_main(monkeypatch, "src/chat.py", *(model if word == "MODEL" else word for word in asked))
