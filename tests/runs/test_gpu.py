"""Every command on a GPU, and what only a GPU computes; skipped, and said so, where there is none."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, kill_when, must, run_script
from every_command import COMMANDS, World, flags
from transformers import AutoModelForCausalLM, Qwen2Config

from posttrain.models.packed_attention import (
    PROBE_LENGTHS,
    TOLERANCE,
    kernel_dtype,
    miniature,
    packing_difference,
    prove_packing,
    register,
    varlen_sdpa,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")]
ON_A_CPU = ("tiny_math", "filter_traces", "report", "data_report", "preference_pairs", "sft, two processes")
ONE_GPU = {"eval": {"num_workers": 1}}  # one process for each
NEAR = 0.03  # a loss in bfloat16 by one in float32


@pytest.fixture(scope="module")
def world(once, whole_tiny_data) -> World:
    return World(once, whole_tiny_data)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The accelerate config of one GPU, with an attention that needs no other package."""
    settings = yaml.safe_load((REPOSITORY / "accelerate_configs/single_gpu.yaml").read_text())
    settings["dynamo_config"] = {"gradient_checkpointing": True, "attn_implementation": "varlen_sdpa"}
    path = tmp_path_factory.mktemp("config") / "gpu.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ON_A_CPU])
def test_a_command_ends_well(name, world, config, tmp_path):
    command = [*COMMANDS[name](world, tmp_path), *flags(**ONE_GPU.get(name, {}))]
    must(run_script(*command[1:], config=config))
    assert any(tmp_path.rglob("*"))


def test_losses_are_those_of_a_cpu(world, config, tmp_path):
    for place, settings in (("cpu", "accelerate_configs/cpu.yaml"), ("gpu", config)):
        must(run_script(*COMMANDS["sft"](world, tmp_path / place)[1:], config=settings))
    by_cpu, by_gpu = (losses(tmp_path / place / "run") for place in ("cpu", "gpu"))
    assert len(by_cpu) == 6 and by_gpu == pytest.approx(by_cpu, rel=NEAR)
    record = json.loads((tmp_path / "gpu/run/run.json").read_text())
    assert record["plan"] and record["result"]["peak_memory_bytes"] > 0


def test_a_killed_run_goes_on(world, config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    must(run_script(*COMMANDS["sft"](world, whole)[1:], config=config))
    kill_when(killed / "run/checkpoint-2/complete.json", COMMANDS["sft"](world, killed)[1:], config)
    must(run_script(*COMMANDS["sft"](world, killed)[1:], config=config))
    assert losses(killed / "run") == pytest.approx(losses(whole / "run"), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_of_packed_rows_computes_what_one_call_for_each_does(dtype):
    torch.manual_seed(0)
    lengths, heads, key_heads, size = (7, 1, 300, 64), 12, 2, 64
    starts = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    shapes = [(1, n, sum(lengths), size) for n in (heads, key_heads, key_heads)]
    exact = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    rounded = [states.detach().to(dtype).requires_grad_() for states in exact]
    weights = torch.randn(1, sum(lengths), heads, size, device="cuda")
    found = []
    for states in (exact, rounded):
        assert kernel_dtype(states[0]) == (dtype if states is rounded else None)
        output, _ = varlen_sdpa(None, *states, None, cu_seq_lens_q=starts, max_length_q=max(lengths))
        gradients = torch.autograd.grad((output.float() * weights).sum(), states)
        found.append([output, *gradients])
    for one, other in zip(*found, strict=True):
        assert (one - other.float()).norm() / one.norm() < 1e-2


def test_packed_examples_are_kept_apart_by_the_kernel():
    register()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = Qwen2Config(**shape, num_key_value_heads=2, vocab_size=128, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(small, attn_implementation="varlen_sdpa").cuda()
    assert prove_packing(model, "here") < TOLERANCE[torch.bfloat16]
    whole = torch.tensor([0, sum(PROBE_LENGTHS)], dtype=torch.int32)
    broken = {"cu_seq_lens_q": whole, "max_length_q": sum(PROBE_LENGTHS)}
    assert packing_difference(miniature(model), broken) > 3 * TOLERANCE[torch.bfloat16]


def test_answers_are_those_of_a_cpu(world, config, tmp_path):
    """Greedy in float32; a near tie may fall either way."""
    answers = []
    for place, settings in (("cpu", "accelerate_configs/cpu.yaml"), ("gpu", config)):
        command = [*COMMANDS["eval"](world, tmp_path / place), *flags(num_workers=1, dtype="float32")]
        must(run_script(*command[1:], config=settings))
        (samples,) = (tmp_path / place).rglob("tiny_1step/samples.jsonl")
        answers.append([json.loads(line).get("completion") for line in samples.read_text().splitlines()])
    assert len(answers[0]) == 40 and sum(a == b for a, b in zip(*answers, strict=True)) >= 36
