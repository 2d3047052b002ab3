"""What a run says: to a log file plain lines that all have a purpose, to a terminal a bar with its figures."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import REPOSITORY, launch, script_environment

pytestmark = pytest.mark.slow
NOISE = ("Failed to load CPU", "Setting accelerator", "{'", "\r", "%|", "it/s")


def arguments(data: Path, out: Path) -> list[str]:
    values = {
        "dataset_name": data / "tiny_math", "output_dir": out, "max_steps": 10, "logging_steps": 1, "save_steps": 5,
        "eval_steps": 5, "sample_generations": 2,
    }  # fmt: skip
    return ["src/sft.py", "recipes/tiny_sft.yaml", *(t for k, v in values.items() for t in (f"--{k}", str(v)))]


def test_the_log_of_a_run_is_a_header_some_progress_and_a_result(tiny_data, tmp_path):
    out = tmp_path / "run"
    done = launch("accelerate_configs/cpu.yaml", *arguments(tiny_data, out))
    assert done.returncode == 0, done.stderr
    told = [
        rf"sft recipes/tiny_sft\.yaml → {out}",
        r"  model    assets/tiny_base, trains 854,144 of 854,144 parameters \(100\.00%\)",
        rf"  data     {tiny_data}/tiny_math: 400 train, \d+ validation",
        r"  plan     fits: needs [\d.]+ GiB of [\d.]+ GiB on this machine, up to \d+ rows in a micro-batch; .*",
        r"  steps    10 in 1 epoch, 4 rows each",
        r"  machine  CPU, 1 process of 1 thread, float32, varlen_sdpa attention",
        rf"{out}/final: 10 steps, \d+ tokens, loss [\d.]+ → [\d.]+, held-out mean_token_accuracy 0\.\d+, \d+ s",
    ]
    assert len(done.stdout.splitlines()) == len(told), done.stdout
    for line, form in zip(done.stdout.splitlines(), told, strict=True):
        assert re.fullmatch(form, line), line
    steps = re.findall(r"run: step \d+ of 10: loss [\d.]+, [\d,]+ tokens/s, \d+:\d\d left\n", done.stderr)
    held_out = re.findall(r"run: step \d+ of 10, held out: loss [\d.]+\n", done.stderr)
    assert (len(steps), len(held_out)) == (4, 2), done.stderr
    assert not [noise for noise in NOISE if noise in done.stdout + done.stderr], done.stderr


def on_a_terminal(command: list[str]) -> str:
    """What a person sees of a script, every drawing of its bars included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # a bar needs room
    environment = {**script_environment(), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the last writer is gone
                break
            seen += part
        assert run.wait() == 0, seen.decode()
    os.close(ours)
    return seen.decode()


def test_a_terminal_shows_one_bar_with_loss_and_rate(tiny_data, tmp_path):
    seen = on_a_terminal(arguments(tiny_data, tmp_path / "run"))
    assert re.search(r"10/10 \[[^]]*loss [\d.]+, [\d,]+ tokens/s\]", seen), seen
    assert len(re.findall(r"step \d+, held out: loss [\d.]+", seen)) == 2
    assert "{'" not in seen and "Failed to load CPU" not in seen
    assert seen.count("Writing model shards: 100%") <= 1  # of final/, once the bar is gone; none of the checkpoints
    assert seen.rstrip().splitlines()[-1].startswith(f"{tmp_path}/run/final: 10 steps")
