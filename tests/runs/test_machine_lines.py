"""Every command that computes says with what: processes, threads, dtype and attention."""

import re

import pytest
from conftest import must, run_script
from every_command import COMMANDS, World

pytestmark = pytest.mark.slow
CPU = r"^  machine +CPU, (1 process|2 processes) of 1 thread, float32, \w+ attention"
ALL = (
    "sft", "grpo", "dpo", "reward_model", "value", "distill", "memory_sft", "memory_eval", "eval", "expert_iteration",
)  # fmt: skip
NAMES = ["sample", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ALL)]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_says_what_it_computes_with(name, once, whole_tiny_data, tmp_path):
    command = COMMANDS[name](World(once, whole_tiny_data), tmp_path)
    assert re.search(CPU, must(run_script(*command[1:])).stdout, re.MULTILINE)
