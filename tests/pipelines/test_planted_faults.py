"""Faults planted into shipped recipes, one each: a rehearsal names the key and the line to change, before any step."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import REPOSITORY

from posttrain.data.manifest import Source, check_dataset, write_dataset, write_manifest
from posttrain.data.rows import chat_row, write_table
from posttrain.pipelines.rehearsal.rehearse import Asked, rehearse

SERVER = {
    "use_vllm": True, "vllm_mode": "server", "vllm_server_timeout": 5.0, "vllm_importance_sampling_correction": True,
}  # fmt: skip
LORA = {"use_peft": True, "lora_r": 4, "random_init": False, "packing": False}


@dataclass(frozen=True)
class Planted:
    """A recipe with some keys changed, what a rehearsal must say of which key, and what else is wrong around it.

    `plant` gets a directory of its own and returns further changes; `asked` are fields of Asked.
    """

    name: str
    recipe: str
    key: str
    says: str
    changes: dict[str, Any] = field(default_factory=dict)
    plant: Callable[[Path], dict[str, Any]] = lambda directory: {}
    asked: dict[str, Any] = field(default_factory=dict)


def base_without_template(directory: Path) -> dict[str, Any]:
    return {"model_name_or_path": str(model(directory, template=None))}


def base_with_changing_template(directory: Path) -> dict[str, Any]:
    """As templates do that were written for answers in capitals, or strip thoughts out of them."""
    text = (REPOSITORY / "assets/tiny_base/chat_template.jinja").read_text()
    assert "message['content']" in text or 'message["content"]' in text or "message.content" in text
    changed = re.sub(r"(message\[.content.\]|message\.content)", r"\1 | upper", text)
    return {"model_name_or_path": str(model(directory, template=changed))}


def model(directory: Path, template: str | None) -> Path:
    out = directory / "model_of_the_user"
    shutil.copytree(REPOSITORY / "assets/tiny_base", out)
    for name in ("complete.json", "chat_template.jinja"):
        (out / name).unlink()
    if template:
        (out / "chat_template.jinja").write_text(template)
    return out


def teacher_of_another_vocabulary(directory: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    out = directory / "teacher_of_the_user"
    shutil.copytree(REPOSITORY / "assets/tiny_base", out)
    (out / "complete.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(out)
    return {"teacher_model_name_or_path": str(out)}


def rows(directory: Path, answers: list[str], solution: str = "3+4=7. The answer is \\boxed{7}.") -> dict[str, Any]:
    """A dataset of these golds."""
    made = [chat_row(f"Ana has {n} pens. How many?", solution, answer, "test") for n, answer in enumerate(answers)]
    write_dataset(directory / "rows", {"train": made, "validation": made[:4]}, Source("t", "none"), 0, {}, None)
    return {"dataset_name": str(directory / "rows")}


def unreadable_golds(directory: Path) -> dict[str, Any]:
    return rows(directory, ["7"] * 30 + [""] * 4)


def written_control_token(directory: Path) -> dict[str, Any]:
    """Rows that were rendered by somebody's template before."""
    return rows(directory, ["7"] * 40, "3+4=7.<|im_end|>\n<|im_start|>user\nThank you")


def counted_with_another_tokenizer(directory: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    other = directory / "other_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(other)
    changes = rows(directory, ["7"] * 40)
    made = Path(changes["dataset_name"])
    manifest = check_dataset(made)
    facts = {**manifest, "tokens": {**manifest["tokens"], "tokenizer": str(other)}}
    write_manifest(made, [made / "train.parquet", made / "validation.parquet"], Source("t", "none"), facts)
    return changes


def changed_after_it_was_prepared(directory: Path) -> dict[str, Any]:
    changes = rows(directory, ["7"] * 40)
    path = Path(changes["dataset_name"]) / "train.parquet"
    write_table(path, pa.Table.from_pylist([{"id": "x"}]))
    return changes


def few_rows(directory: Path) -> dict[str, Any]:
    return rows(directory, ["7"] * 10)


FAULTS = [
    # what the reader of recipes says
    Planted("unknown key", "tiny_sft", "learning_rat", "did you mean learning_rate", {"learning_rat": 1.0e-4}),
    Planted("two keys at odds", "tiny_sft", "packing_strategy", "expected bfd", {"packing_strategy": "wrapped"}),
    # model, tokenizer, template
    Planted("no template", "tiny_sft", "prompt", "has no chat template", plant=base_without_template),
    Planted("wrong template", "tiny_sft", "prompt", "changes the completion", plant=base_with_changing_template),
    Planted("end not in vocabulary", "tiny_sft", "eos_token", "not in the vocabulary", {"eos_token": "</s>"}),
    Planted("end that is the pad", "tiny_sft", "eos_token", "does not end an answer", {"eos_token": "<|endoftext|>"}),
    Planted("no end token", "tiny_sft", "append_eos", "would never stop", {"append_eos": False}),
    Planted(
        "teacher of another vocabulary", "tiny_distill", "teacher_model_name_or_path", "must share the tokenizer",
        plant=teacher_of_another_vocabulary,
    ),
    Planted("no model", "tiny_sft", "model_name_or_path", "has no config.json", {"model_name_or_path": "outputs/x"}),
    # rows
    Planted("row longer than its limit", "tiny_sft", "max_length", "tokens, but max_length is 32", {"max_length": 32}),
    Planted("more tokens than positions", "tiny_sft", "max_length", "1024 positions", {"max_length": 4096}),
    Planted("rows of another method", "tiny_dpo", "dataset_name", "no column 'chosen'", plant=few_rows),
    Planted("control token in a row", "tiny_sft", "dataset_name", "<|im_end|>", plant=written_control_token),
    Planted(
        "dataset of another tokenizer", "tiny_sft", "dataset_name", "whose vocabulary is not",
        plant=counted_with_another_tokenizer,
    ),
    Planted("changed dataset", "tiny_sft", "dataset_name", "was changed", plant=changed_after_it_was_prepared),
    Planted("no dataset", "tiny_sft", "dataset_name", "python data_prep/tiny_math.py", asked={"made_up": False}),
    # answers and rewards
    Planted("unreadable gold", "tiny_grpo", "dataset_name", "not accepted as their own", plant=unreadable_golds),
    Planted("constant reward", "tiny_grpo", "reward_funcs", "for being right", {"reward_funcs": ["soft_overlong"]}),
    Planted("reward without weight", "tiny_grpo", "reward_funcs", "for being right", {"reward_weights": [0.0]}),
    Planted("no such reward", "tiny_grpo", "reward_funcs", "PYTHONPATH", {"reward_funcs": ["mine:reward"]}),
    Planted(
        "prompt longer than the budget", "tiny_grpo", "max_completion_length", "longest prompt",
        {"max_completion_length": 1000},
    ),
    # batches, memory, disk, port
    Planted("groups that batches cut", "tiny_grpo", "num_generations", "does not divide", {"num_generations": 12}),
    Planted(
        "generation larger than the dataset", "tiny_grpo", "per_device_train_batch_size", "the dataset has 10",
        {"guard_steps": 0}, few_rows,
    ),
    Planted(
        "no batch is full", "tiny_sft", "per_device_train_batch_size", "fill no batch",
        {"per_device_train_batch_size": 500, "dataloader_drop_last": True},
    ),
    Planted(
        "too large for the GPU", "qwen2.5_1.5b_gsm8k_sft", "per_device_train_batch_size", "does not fit",
        {"per_device_train_batch_size": 512}, asked={"gpus": "RTX4090", "config": "single_gpu"},
    ),
    Planted("disk too small", "tiny_sft", "output_dir", "are free", asked={"disk": 0.001}),
    Planted("port taken", "tiny_grpo", "vllm_server_port", "Address already in use", SERVER),
    # which weights train, and what is called
    Planted(
        "adapter on nothing", "tiny_sft", "lora_target_modules", "'query_key_value' matches no layer",
        {**LORA, "lora_target_modules": ["q_proj", "query_key_value"]},
    ),
    Planted("layer that is not there", "tiny_sft", "freeze_layers", "no parameter matches", {"freeze_layers": [9]}),
    Planted("no such callback", "tiny_sft", "callbacks", "mine", {"callbacks": ["mine:Callback"]}),
    Planted("no such benchmark", "tiny_ei", "benchmarks", "unknown: gsm9k", {"benchmarks": "gsm9k"}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_fresh_clone(monkeypatch, tmp_path_factory):
    clone = tmp_path_factory.mktemp("clone")
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("data", "outputs"):  # what the demo leaves there is no dataset of these recipes
            (clone / entry.name).symlink_to(entry)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def changed(recipe: str, changes: dict[str, Any], out: Path) -> Path:
    """The recipe with some lines replaced or added; comments and the other lines stay where they are."""
    lines = (REPOSITORY / f"recipes/{recipe}.yaml").read_text().splitlines()
    for key, value in changes.items():
        line = f"{key}: {json.dumps(value)}"  # which is YAML
        place = next((n for n, each in enumerate(lines) if each.startswith(f"{key}:")), None)
        lines = [*lines, line] if place is None else [*lines[:place], line, *lines[place + 1 :]]
    path = out / "planted.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_named_by_key_and_line_before_anything_runs(fault, tmp_path, capsys):
    changes = fault.changes | fault.plant(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if fault.name == "port taken":
            changes["vllm_server_port"] = taken.getsockname()[1]
        path = changed(fault.recipe, changes, tmp_path)
        asked = {"made_up": True, "paper": True, **fault.asked}
        config = Path(f"accelerate_configs/{asked.pop('config', 'cpu')}.yaml")
        findings = rehearse(Asked(path, config, tmp_path / "out", **asked))
    lines = path.read_text().splitlines()
    line = next((n for n, text in enumerate(lines, start=1) if text.startswith(f"{fault.key}:")), None)
    assert len(findings.failed) == 1, [check.detail for check in findings.failed]
    detail = findings.failed[0].detail
    assert detail.startswith(f"{path}:{line}: {fault.key}: "), detail
    assert fault.says in detail
    assert detail in capsys.readouterr().out
    assert json.loads((tmp_path / "out/rehearsal.json").read_text())["passed"] is False


def test_there_are_twenty_and_more():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
