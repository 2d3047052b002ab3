"""The main command on real input: GSM8K, Qwen2.5's tokenizer, every key of recipes/qwen_math_sft.yaml in force."""

import json
from pathlib import Path

import pytest
from conftest import launch, must, run_script

from posttrain.data.benchmarks import load_benchmarks
from posttrain.data.encode import Encoding, load_split
from posttrain.data.records import local_source, read_json_lines
from posttrain.data.rows import chat_row, write_parquet
from posttrain.data.sources.gsm8k import to_rows

GPU_RECIPE = "recipes/qwen_math_sft.yaml"


@pytest.fixture(scope="session")
def gsm8k(once, shared_data) -> Path:
    command = [
        "data_prep/gsm8k.py", "--train", shared_data / "gsm8k/train.jsonl", "--test", shared_data / "gsm8k/test.jsonl",
        "--style", "r1_zero", "--validation", 20, "--tokenizer", shared_data / "tokenizers/qwen2.5", "--out",
    ]  # fmt: skip
    return once("gsm8k", lambda out: must(run_script(*command, out / "gsm8k")))


@pytest.fixture(scope="session")
def small_qwen(once, shared_data) -> Path:
    """Random weights of Qwen2's architecture with the real vocabulary and the real tokenizer."""
    return once("small_qwen", lambda out: write_small_qwen(out, shared_data))


def write_small_qwen(directory: Path, shared_data: Path) -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, set_seed

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/qwen2.5")
    tokenizer.save_pretrained(directory)
    set_seed(0)
    config = Qwen2Config(
        vocab_size=151936, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=151643,
        eos_token_id=151643,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory)


def test_gsm8k_rows(shared_data):
    path = shared_data / "gsm8k/test.jsonl"
    records = read_json_lines(path)
    assert local_source("gsm8k", "MIT", [path]).sha256[str(path)].startswith("3730d312")
    rows, dropped = to_rows(records, "test", "boxed", keep_marks=False)
    assert (len(rows), sum(dropped.values())) == (1319, 0)
    assert not any("," in row.answer or "<<" in row.completion[0]["content"] for row in rows)
    raw = [record["answer"].split("####")[-1] for record in records]
    assert sum("," in answer for answer in raw) == 14
    kept, _ = to_rows(records, "test", "boxed", keep_marks=True)
    assert any("<<" in row.completion[0]["content"] for row in kept)


@pytest.mark.parametrize(
    ("name", "file", "n"),
    [("math500", "math/math500.jsonl", 500), ("aime24", "aime24/test.jsonl", 30), ("amc23", "amc23/test.jsonl", 40)],
)
def test_benchmarks_from_local_files(shared_data, tmp_path, name, file, n):
    done = run_script("data_prep/benchmarks.py", name, "--file", shared_data / file, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (benchmark,) = load_benchmarks(name, tmp_path, limit=None)
    assert len(benchmark.rows) == n
    wrong = run_script("data_prep/benchmarks.py", name, "--file", shared_data / "gsm8k/test.jsonl", "--out", tmp_path)
    assert wrong.returncode == 2
    assert "expected" in wrong.stderr


@pytest.mark.slow
def test_real_traces_are_tokenised_whole(shared_data, tmp_path):
    """Every trace passes the lint of the real tokenizer and template, and is kept whole or counted as too long."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/qwen2.5")
    tokenizer.eos_token = "<|im_end|>"
    traces = read_json_lines(shared_data / "traces/mip_traces.jsonl")
    rows = [chat_row(t["question"], t["response"], str(t["gold"]), "traces") for t in traces]
    write_parquet(tmp_path / "train.parquet", rows)
    encoding = Encoding("chat", "<|im_end|>", max_length=4096, too_long="drop")
    dataset, dropped = load_split(tmp_path / "train.parquet", tokenizer, encoding, limit=None)
    assert len(dataset) + dropped == len(traces) == 3611
    assert max(map(len, dataset["input_ids"])) <= 4096
    assert all(labels[-1] == tokenizer.eos_token_id for labels in dataset["labels"])


def test_a_bad_gold_is_named(shared_data, tmp_path):
    lines = (shared_data / "amc23/test.jsonl").read_text().splitlines()
    record = json.loads(lines[3])
    lines[3] = json.dumps({**record, "answer": ""})
    (tmp_path / "amc.jsonl").write_text("\n".join(lines))
    done = run_script("data_prep/benchmarks.py", "amc23", "--file", tmp_path / "amc.jsonl", "--out", tmp_path)
    assert done.returncode == 2
    assert "bad gold ''" in done.stderr
    assert record["question"][:15] in done.stderr


def test_a_broken_line_names_its_place(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "q", "answer": "a #### 1"}\n[3]\n')
    done = run_script("data_prep/gsm8k.py", "--train", path, "--test", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"{path}:2: " in done.stderr and "expected a JSON object on each line" in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.slow
def test_the_main_command_on_real_data(gsm8k, small_qwen, tmp_path):
    """Everything of the recipe is in force but model, data, batch and step count."""
    out = tmp_path / "run"
    done = launch(
        "accelerate_configs/cpu.yaml", "src/sft.py", GPU_RECIPE, "--model_name_or_path", small_qwen, "--dataset_name",
        gsm8k / "gsm8k", "--output_dir", out, "--max_steps", 5, "--per_device_train_batch_size", 1, "--eval_steps", 5,
        "--per_device_eval_batch_size", 1, "--learning_rate", "3e-3", "--save_steps", 5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((out / "run.json").read_text())
    assert run["prompt"] == "r1_zero"
    assert run["result"]["last_loss"] < run["result"]["first_loss"]
    assert list((out / "wandb").glob("offline-run-*"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(out / "final")
    assert AutoTokenizer.from_pretrained(out / "final").eos_token == "<|endoftext|>"

    evaluated = run_script(
        "src/eval.py", "recipes/eval_greedy.yaml", "--model", out / "final", "--benchmarks", "gsm8k", "--data_dir",
        gsm8k, "--max_new_tokens", 8, "--batch_size", 128, "--output_dir", tmp_path / "evals",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    metrics = json.loads((tmp_path / "evals/gsm8k/metrics.json").read_text())
    assert metrics["n"] == sum(metrics["counts"].values()) == 1319
    assert metrics["prompt"]["name"] == "r1_zero"
    assert metrics["limit"] is None


@pytest.mark.slow
def test_grpo_on_real_questions(gsm8k, small_qwen, tmp_path):
    """Probe, rewards and two steps of recipes/qwen_math_grpo.yaml; only sizes and the generation differ."""
    done = launch(
        "accelerate_configs/cpu.yaml", "src/grpo.py", "recipes/qwen_math_grpo.yaml", "--model_name_or_path", small_qwen,
        "--dataset_name", gsm8k / "gsm8k", "--output_dir", tmp_path / "run", "--use_vllm", "false",
        "--generation_kwargs", "null", "--max_completion_length", 24, "--num_generations", 4,
        "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--max_steps", 2, "--save_steps", 1,
        "--guard_steps", 1, "--guard_prompts", 4, "--probe", "warn", "--report_to", "none", "--num_train_examples", 64,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    probe = json.loads((tmp_path / "run/probe.json").read_text())
    assert probe["gold_unparsed"] == 0 and probe["completions/clipped_ratio"] == 1.0
    assert any("fill max_completion_length" in refusal for refusal in probe["refusals"])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(f"rewards/{name}/mean" in lines[0] for name in ("r1_zero", "r1_zero_format", "accuracy"))
    completions = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert completions[0]["prompt"].endswith("Assistant: <think>")


@pytest.mark.slow
def test_each_benchmark_can_be_asked_as_is_usual_for_it(gsm8k, shared_data, small_qwen, tmp_path):
    data, file = tmp_path / "data", shared_data / "math/math500.jsonl"
    must(run_script("data_prep/benchmarks.py", "math500", "--file", file, "--out", data))
    (data / "gsm8k").symlink_to(gsm8k / "gsm8k")
    done = run_script(
        "src/eval.py", "recipes/eval_greedy.yaml", "--model", small_qwen, "--benchmarks", "gsm8k,math500", "--data_dir",
        data, "--max_new_tokens", 2, "--limit", 3, "--prompt", "benchmark", "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "prompt gsm8k_fewshot, qwen_math_cot" in done.stdout
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("gsm8k", "math500")}
    assert [(m["prompt"]["name"], m["decoding"]["stop"]) for m in metrics.values()] == [
        ("gsm8k_fewshot", ["Question:"]),
        ("qwen_math_cot", []),
    ]
