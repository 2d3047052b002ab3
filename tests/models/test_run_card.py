"""The card of a run: what the Hub reads, results that stay, and files of somebody else that are left alone."""

import json
import shutil

import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard

from posttrain.models import checkpoints, run_card
from posttrain.training.final import publish

ROPE = {"rope_theta": 1e4, "rope_type": "default", "max_position_embeddings": 8}
RECORD = {
    "run_id": "my_run-1a2b3c4d", "prompt": "chat", "eos_token": "<|im_end|>", "rope": {"base": ROPE, "trained": ROPE},
    "identity": {"trainer": "sft", "model_name_or_path": "Qwen/Qwen2.5-1.5B"},
    "inputs": {
        "dataset": {
            "path": "/home/somebody/data/gsm8k", "source": {"id": "openai/gsm8k", "licence": "MIT"},
            "used": {"train": 7000, "validation": 400}, "dropped_too_long": {"train": 3},
        },
    },
    "parameters": {"layer 0": {"trainable": 10, "frozen": 2}, "lm_head": {"trainable": 0, "frozen": 5}},
    "result": {"steps": 12, "tokens_seen": 3456, "wall_seconds": 3600.0, "first_loss": 2.0, "last_loss": 1.0},
    "hardware": {"gpus": ["H100"]}, "accelerate": {"num_processes": 8, "use_cpu": False, "path": "a/zero2.yaml"},
    "sessions": [{}], "code": {"commit": "abc", "dirty": True}, "packages": {"torch": "2.13"},
    "argv": ["src/sft.py", "recipes/x.yaml", "--dataset_name", "/home/somebody/data/gsm8k"],
    "recipe": {"path": "recipes/x.yaml", "text": "trainer: sft\n---\nseed: 1\n"},
}  # fmt: skip


def metrics(benchmark, value):
    return {
        "benchmark": benchmark, "n": 200, "accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05},
        "decoding": {"temperature": 0.0, "num_samples": 1}, "prompt": {"name": "chat"},
        "grader": {"name": "posttrain"},
    }  # fmt: skip


@pytest.fixture
def final(tmp_path):
    path = tmp_path / "my_run/final"
    path.mkdir(parents=True)
    (path / "lineage.json").write_text(json.dumps(RECORD))
    (path.parent / "run.json").write_text(json.dumps(RECORD))
    checkpoints.mark_complete(path)
    return path


def test_a_card_says_what_the_run_was_and_the_hub_can_read_it(final):
    run_card.update(final)
    card = ModelCard.load(final / "README.md")
    assert (card.data.base_model, card.data.datasets, card.data.library_name) == (
        "Qwen/Qwen2.5-1.5B", ["openai/gsm8k"], "transformers",
    )  # fmt: skip
    for said in (
        "# my_run", "7,000 train, 400 validation; 3 too long", "10 of 17 parameters", "8 × H100 (8.00 device hours)",
        "Not evaluated yet", "Commit abc, with changes", "--config_file a/zero2.yaml src/sft.py", "data/gsm8k",
    ):  # fmt: skip
        assert said in card.text, said
    assert "/home/somebody" not in (final / "README.md").read_text()
    assert checkpoints.is_complete(final) and checkpoints.fault(final) is None  # the card is outside of the mark


def test_results_of_evaluations_stay_and_the_last_of_a_benchmark_counts(final):
    run_card.update(final, [metrics("gsm8k", 0.5)])
    run_card.update(final, [metrics("math500", 0.25), metrics("gsm8k", 0.6)])
    run_card.update(final)
    card = ModelCard.load(final / "README.md")
    found = {result.dataset_type: result.metric_value for result in card.data.eval_results}
    assert found == {"gsm8k": 0.6, "math500": 0.25}
    assert "60.0" in card.text and "[55.0,\u00a065.0]" in card.text and "200 answers, 1 a question, greedy" in card.text


def test_what_is_not_ours_is_left_alone(final, tmp_path, capsys):
    (final / "README.md").write_text("mine")
    run_card.update(final, [metrics("gsm8k", 0.5)])
    assert (final / "README.md").read_text() == "mine" and "left as it is" in capsys.readouterr().out
    run_card.update(tmp_path)
    run_card.update(tmp_path / "nothing")
    run_card.update(shutil.copytree(final, tmp_path / "copied"))  # of somebody else, or a committed one
    assert (tmp_path / "copied/README.md").read_text() == "mine"
    assert not (tmp_path / "README.md").exists()
    (final / "README.md").unlink()
    (final / "lineage.json").write_text(json.dumps({k: v for k, v in RECORD.items() if k != "parameters"}))
    run_card.update(final)
    assert not (final / "README.md").exists() and "of another version" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "---\n---", "---\n[\n---", "---\nmodel-index: 3\n---", run_card.OURS, "---\na: b"]
)
def test_a_card_without_results_that_can_be_read_has_none(text):
    assert run_card.results_of(text) == {}


def test_a_final_checkpoint_is_published_with_its_card(tmp_path):
    """So every method has one, and a restored one has it again."""
    out = tmp_path / "run"
    (out / ".unfinished").mkdir(parents=True)
    (out / ".unfinished/memory.json").write_text("{}")
    (out / "run.json").write_text(json.dumps(RECORD))
    publish(out / ".unfinished", out / "final", RECORD)
    assert "# my_run" in (out / "final/README.md").read_text() and checkpoints.is_complete(out / "final")


def test_an_evaluation_writes_the_card_again():
    assert "run_card.update(" in (REPOSITORY / "src/eval.py").read_text()
