"""Questions tied to bank rows, counterfactual batches, the published command line, and memories on disk."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from posttrain.data.encode import IGNORED, Encoding
from posttrain.data.sources import tiny_facts
from posttrain.errors import PosttrainError
from posttrain.hardware import Hardware
from posttrain.memory.attach import attach
from posttrain.memory.bank.cache import BankShape, as_fact, bank_digest, build_bank, load_bank, write_bank
from posttrain.memory.bank.questions import Fact, question_of, read_questions, with_object
from posttrain.memory.build import check_options, files_manifest, set_keys
from posttrain.memory.command_line import translate
from posttrain.memory.data import Collator, build_rows
from posttrain.memory.files import check_bank_of, load_memory, load_published, read_description, save_memory, save_pth
from posttrain.memory.layer import MemoryConfig, MemoryFault, auxiliary
from posttrain.memory.trainer import asks_for_a_fact
from posttrain.recipe.memory_options import MemoryOptions

TOKENIZER = tiny_facts.make_tokenizer()
ENCODING = Encoding("question_only", tiny_facts.END, 16, "error")
FACTS = tiny_facts.make_facts(2, seed=0)
SHAPE = BankShape(16, 6, len(TOKENIZER), TOKENIZER.pad_token_id)


def encode(sentences: list[str]) -> list[list[int]]:
    return TOKENIZER(sentences, add_special_tokens=False)["input_ids"]


@pytest.fixture
def world(tmp_path) -> Path:
    """train.json and bank.pt of sixteen facts."""
    (tmp_path / "train.json").write_text(json.dumps([fact.as_item("train") for fact in FACTS]))
    bank, mappings, _ = build_bank([as_fact(fact.as_sentence()) for fact in FACTS], encode, SHAPE)
    write_bank(tmp_path / "bank.pt", bank, mappings, {})
    return tmp_path


@pytest.fixture
def rows(world):
    return build_rows(read_questions(world / "train.json"), world / "bank.pt", TOKENIZER, ENCODING)[0]


def test_the_two_splits_of_the_tiny_world_share_no_wrong_option():
    for fact in FACTS:
        assert not set(fact.others["train"]) & set(fact.others["validation"])
        assert fact.place not in fact.others["train"] + fact.others["validation"]


def test_a_question_knows_its_bank_row(world, rows):
    bank = load_bank(world / "bank.pt", SHAPE)
    assert len(rows) == 16
    for row in rows:
        assert TOKENIZER.decode(bank[row["fact"]["row"]], skip_special_tokens=True) == row["fact"]["sentence"]
        assert row["fact"]["sentence"] == f"{row['question']['content']} {row['question']['answer']}"
        answer = [label for label in row["labels"] if label != IGNORED]
        assert TOKENIZER.decode(answer) == row["question"]["answer"] + tiny_facts.END


def collator(probability: float, seed: int = 0) -> Collator:
    return Collator(TOKENIZER, ENCODING, 6, probability, seed)


def test_a_counterfactual_batch_says_the_same_in_bank_and_answer(rows):
    batch = collator(1.0)(list(rows))
    assert len(batch["edited_rows"]) == 16
    edited = dict(zip(batch["edited_rows"].tolist(), batch["edited_sentences"], strict=True))
    for row, labels in zip(rows, batch["labels"], strict=True):
        answer = TOKENIZER.decode(labels[labels != IGNORED], skip_special_tokens=True)
        sentence = TOKENIZER.decode(edited[row["fact"]["row"]], skip_special_tokens=True)
        assert sentence == f"{row['question']['content']} {answer}"
        assert answer in row["question"]["choices"] and answer != row["question"]["answer"]


def test_draws_follow_seed_epoch_and_row_alone(rows):
    rows, collate = list(rows), collator(0.5)
    first = collate(rows)
    assert 0 < len(first["edited_rows"]) < 16
    alone = [collate([row]) for row in reversed(rows)]
    assert sorted(int(row) for one in alone for row in one["edited_rows"]) == sorted(first["edited_rows"].tolist())
    collate.epoch = 1
    assert not torch.equal(collate(rows)["labels"], first["labels"])
    assert len(collator(0.0)(rows)["edited_rows"]) == 0
    assert collator(0.0)(rows)["edited_sentences"].shape == (0, 6)


def test_two_questions_about_one_row_never_contradict_each_other(rows):
    row = rows[0]
    other = {**row, "question": {**row["question"], "choices": [row["question"]["answer"], "somewhere"]}}
    batch = collator(1.0)([row, other])
    assert len(batch["edited_rows"]) == 1
    assert (batch["labels"][1] == IGNORED).all()  # its options do not hold what the bank says for now
    same = collator(1.0)([row, row])
    assert torch.equal(same["labels"][0], same["labels"][1])


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (Fact(0, "Oslo is in Norway.", "Oslo", "Norway"), "Oslo is in X."),
        (Fact(0, "Norway's capital: Oslo.", "Oslo", "Norway"), "X's capital: Oslo."),
        (Fact(0, "Bank of Ireland is in Ireland.", "Bank of Ireland", "Ireland"), "Bank of Ireland is in X."),
        (Fact(0, "Bank of Ireland is large.", "Bank of Ireland", "Ireland"), None),
        (Fact(0, "Something.", "", ""), None),
    ],
)
def test_the_object_is_replaced_and_the_subject_is_not(fact, expected):
    assert with_object(fact, "X") == expected


def test_a_row_too_short_for_another_object_stays_true(rows):
    short = Collator(TOKENIZER, ENCODING, 5, 1.0, 0)  # a sentence has six tokens
    assert len(short(list(rows))["edited_rows"]) == 0


def test_questions_with_options_are_asked_as_published(tmp_path):
    target = {"question": "What is Tamil?", "options": "A:language, old,B:river", "correct_answer": "B:river"}
    question = question_of({"target": [target]})
    assert question.content == "What is Tamil?\nA:language, old,B:river\n请选择正确答案。"
    assert question.choices == ["A:language, old", "B:river"]
    assert question_of({"target": [{**target, "choices": ["a,b", "c"]}]}).choices == ["A:a,b", "B:c"]
    line = {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "c.jsonl").write_text(json.dumps(line) + "\n\n")
    (only,) = read_questions(tmp_path / "c.jsonl")
    assert (only.content, only.answer, only.choices) == ("q", "a", [])


@pytest.mark.parametrize(
    "odd",
    [{"options": 0.5}, {"options": ["A:x"]}, {"choices": 3}, {"choices": {"a": 1}}, {"question": "\ud800"},
     {"correct_answer": ""}, {"choices": ["\udfff"]}, {"correct_answer": 7}],
    ids=str,
)  # fmt: skip
def test_a_question_with_an_odd_field_is_none(odd, tmp_path):
    target = {"question": "Where?", "options": "A:here,B:there", "correct_answer": "A:here"}
    (tmp_path / "a.json").write_text(json.dumps([{"target": [target]}, {"target": [target | odd]}]))
    with pytest.raises(PosttrainError, match=r"a\.json: item 2: expected a target with question and correct_answer"):
        list(read_questions(tmp_path / "a.json"))


@pytest.mark.parametrize("name, content", [("a.json", "[{}]"), ("a.jsonl", "{}"), ("a.jsonl", "x"), ("a.json", "x")])
def test_a_file_of_no_questions_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(PosttrainError, match=name):
        list(read_questions(tmp_path / name))
    with pytest.raises(PosttrainError, match="missing"):
        list(read_questions(tmp_path / "none.json"))


def test_the_published_command_line_is_understood():
    assert translate(["recipes/a.yaml", "training.epochs=3", "+model.knowledge_num=4", "--seed", "1"]) == [
        "recipes/a.yaml", "--num_train_epochs", "3", "--knowledge_num", "4", "--seed", "1",
    ]  # fmt: skip
    assert translate(["--config-name", "tiny", "logging.use_swanlab=false"]) == [
        "recipes/tiny.yaml", "--report_to", "none",
    ]  # fmt: skip
    assert translate(["a.yaml", "--learning_rate=1e-4"]) == ["a.yaml", "--learning_rate=1e-4"]
    with pytest.raises(PosttrainError, match="knowledge_update"):
        translate(["model.use_ema_update=true"])


def tiny_memory(tmp_path: Path, layers: tuple[int, ...] = (0, 1), bank: torch.Tensor | None = None):
    from transformers import AutoModelForCausalLM

    if not (tmp_path / "base").exists():
        tiny_facts.write_base(tmp_path / "base", 0)
    config = MemoryConfig(layers, 16, 6, SHAPE.pad_id, knowledge_dim=8, num_candidates=2)
    bank = torch.zeros(16, 6, dtype=torch.int64) if bank is None else bank
    return attach(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config, bank)


def test_a_memory_comes_back_from_its_files(tmp_path):
    memory = tiny_memory(tmp_path)
    save_memory(tmp_path / "m", memory, {"prompt": "chat"})
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"memory.safetensors", "memory.json"}
    assert read_description(tmp_path / "m")["config"] == memory.config
    other = tiny_memory(tmp_path)
    assert not torch.equal(other.layers["0"].memory_gate.keys, memory.layers["0"].memory_gate.keys)
    load_memory(tmp_path / "m", other)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    with pytest.raises(MemoryFault):
        load_memory(tmp_path / "m", tiny_memory(tmp_path, layers=(1,)))
    with pytest.raises(MemoryFault):
        read_description(tmp_path)


def test_published_state_dicts_load_and_say_what_did_not_fit(tmp_path):
    memory = tiny_memory(tmp_path)
    save_pth(tmp_path / "sft_latest.pth", memory)
    found = load_published(tmp_path / "sft_latest.pth", tiny_memory(tmp_path))
    assert (found.missing, found.unexpected, found.others) == ([], [], 0)
    state = {f"module.model.{name}": tensor for name, tensor in memory.state_dict().items()}
    del state["module.model.layers.0.memory_norm.weight"]
    state |= {"module.model.layers.7.memory_norm.weight": torch.ones(64), "module.lm_head.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "original.pth")
    found = load_published(tmp_path / "original.pth", tiny_memory(tmp_path))
    assert found.missing == ["layers.0.memory_norm.weight"]
    assert (found.unexpected, found.others) == (["layers.7.memory_norm.weight"], 1)
    torch.save({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "none.pth")
    for name in ("none.pth", "missing.pth"):
        with pytest.raises(MemoryFault, match=name):
            load_published(tmp_path / name, memory)


def test_another_bank_than_the_trained_one_is_refused(world):
    bank = load_bank(world / "bank.pt", SHAPE)
    description = {"bank": {"path": "bank.pt", "digest": bank_digest(bank)}}
    check_bank_of(description, bank, world / "bank.pt")
    with pytest.raises(MemoryFault, match="digest"):
        check_bank_of(description, bank.flip(0), world / "bank.pt")
    torch.save(bank.flip(0), world / "bank.pt")
    with pytest.raises(PosttrainError, match="its mapping says"):
        load_bank(world / "bank.pt", SHAPE)


def test_options_that_the_recipe_cannot_judge_are_refused(tmp_path):
    options = MemoryOptions(
        trainer="memory_sft", dataset_name=str(tmp_path / "q.json"), prompt="chat",
        cache_path=str(tmp_path / "bank.pt"), knowledge_num=16, knowledge_length=6, memory_layers=1,
    )  # fmt: skip
    machine = {"gradient_checkpointing": False, "attn_implementation": "sdpa", "mixed_precision": "no"}
    cpu = Hardware("cpu.yaml", "use_cpu: true", use_cpu=True, num_processes=1, **machine)
    check_options(options, cpu)
    with pytest.raises(MemoryFault, match="trainable"):
        check_options(dataclasses.replace(options, trainable=["lm_head"]), cpu)
    for text in ("fsdp_config: {fsdp_version: 2}", "deepspeed_config: {zero_stage: 3}"):
        with pytest.raises(MemoryFault, match="zero2"):
            check_options(options, dataclasses.replace(cpu, text=text))
    with pytest.raises(MemoryFault, match=r"q\.json: no such file"):
        files_manifest(options)


@pytest.mark.parametrize("keys", [torch.zeros(2, 4, 5), {"keys": 1}])
def test_keys_of_a_file_must_fit(tmp_path, keys):
    memory = tiny_memory(tmp_path)
    torch.save(keys, tmp_path / "keys.pt")
    with pytest.raises(MemoryFault, match=r"expected keys of shape \[2, 4, 4\]"):
        set_keys(tmp_path / "keys.pt", memory)
    torch.save(torch.ones(2, 4, 4), tmp_path / "keys.pt")
    set_keys(tmp_path / "keys.pt", memory)
    assert all(bool((block.memory_gate.keys == 1).all()) for block in memory.layers.values())


def test_losses_look_at_the_answer_without_its_end_and_at_rows_that_are_known(tmp_path):
    memory = tiny_memory(tmp_path).train()
    labels = torch.tensor([[IGNORED, IGNORED, 5, 1], [IGNORED, 5, 6, 1], [IGNORED, 5, 1, IGNORED]])
    facts = asks_for_a_fact(labels, torch.tensor([3, 7, -1]), end=1)
    assert facts.tolist() == [[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    for layer in (0, 1):
        memory.read(layer, torch.randn(3, 4, 64), torch.randn(200, 64), checkpointing=False)
    readings = list(memory.readings.values())
    figures = auxiliary(readings, torch.ones(3, 4, dtype=torch.bool), facts, torch.tensor([3, 7, -1]))
    expected = 0.0
    for r in readings:
        rows, columns = r.row_scores.log_softmax(-1), r.column_scores.log_softmax(-1)
        places = ((0, 1, 3), (1, 0, 7), (1, 1, 7))
        expected -= sum(rows[b, s, t // 4] + columns[b, s, t % 4] for b, s, t in places) / 3 / 2
    torch.testing.assert_close(figures["loss_router"], expected)
    nothing = auxiliary(readings, torch.ones(3, 4, dtype=torch.bool), facts & False, torch.tensor([3, 7, -1]))
    assert nothing["loss_router"].item() == nothing["hit_rate"].item() == 0.0


@pytest.mark.parametrize("config", [{"a\nb": 1}, {"layers": 3}, {"layers": [0], "x" * 10_000: 1}, [], None])
def test_a_description_that_is_none_is_one_line(tmp_path, config):
    (tmp_path / "memory.json").write_text(json.dumps({"config": config}))
    with pytest.raises(PosttrainError, match="not the description of a memory") as raised:
        read_description(tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
