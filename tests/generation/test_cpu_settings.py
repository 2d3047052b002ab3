"""What a server on a CPU takes from model and machine."""

import pytest
import torch
from conftest import REPOSITORY

from posttrain.generation.vllm import cpu_settings
from posttrain.generation.vllm.cpu_settings import cache_size, choose_context, choose_dtype, settle_on_cpu
from posttrain.generation.vllm.server import ServerError, serve_command

GIB = 2**30
TINY = str(REPOSITORY / "assets/tiny_base")


@pytest.mark.parametrize(
    ("asked", "stored", "fast", "dtype"),
    [
        ("auto", torch.bfloat16, True, "bfloat16"), (None, torch.bfloat16, False, "float32"),
        ("auto", torch.float32, True, "float32"), (None, None, True, "float32"), (None, torch.float16, True, "float32"),
        ("float32", torch.bfloat16, True, "float32"), ("bfloat16", torch.float32, False, "bfloat16"),
    ],
)  # fmt: skip
def test_the_dtype_is_the_files_where_the_processor_has_units_for_it(asked, stored, fast, dtype):
    assert choose_dtype(asked, stored, fast) == dtype


@pytest.mark.parametrize(
    ("free", "tokens"),
    [(20 * GIB, 64 * 2048), (5 * GIB, 50_700), (2 * GIB, 5_461)],
    ids=["64 answers of usual length", "half of what is free", "at least as much as before"],
)
def test_the_cache_holds_what_is_usual_as_far_as_memory_goes(free, tokens):
    """Of Qwen2.5-0.5B in bfloat16: 12 KiB a token, 0.99 GB of weights."""
    found = cache_size(12_288, 32_768, 988_000_000, free) // 12_288
    assert found == pytest.approx(tokens, rel=0.1)


def test_a_sequence_has_what_is_asked_or_what_fits():
    assert choose_context(131_072, None, 32_768) == 32_768
    assert choose_context(4_096, None, 32_768) == 4_096
    assert choose_context(4_096, 1_000, 32_768) == 1_000
    with pytest.raises(ServerError, match=r"vllm_max_model_length: 5000: the memory that is free .* 4,096 tokens"):
        choose_context(4_096, 5_000, 32_768)
    with pytest.raises(ServerError, match="free some"):
        choose_context(0, None, 32_768)


def test_the_servers_arguments_follow_and_variables_of_the_environment_win(monkeypatch):
    monkeypatch.setattr(cpu_settings, "free_memory", lambda: 20 * GIB)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = settle_on_cpu({"model_name_or_path": TINY})
    assert (found.dtype, found.threads, found.context) == ("float32", 3, 1024)
    command, environment = serve_command({"model_name_or_path": TINY}, found)
    assert command[command.index("--dtype") + 1] == found.dtype
    assert f"--kv-cache-memory-bytes {found.cache_bytes}" in " ".join(command)
    assert environment["OMP_NUM_THREADS"] == "3" and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert f"hold {found.tokens:,} tokens; up to 64 answers at once, 1,024 tokens each" in found.lines()["cache"]
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.5")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-2")
    found = settle_on_cpu({"model_name_or_path": TINY, "dtype": "bfloat16", "vllm_max_model_length": 512})
    assert (found.dtype, found.cache_bytes, found.context) == ("bfloat16", GIB // 2, 512)
    assert found.environment()["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"
