"""What a person reads: formats, progress on a terminal and in a log, and what is held back."""

import io
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import console
from posttrain.console import (
    Progress,
    clock,
    command_line,
    counted,
    counts_line,
    header,
    machine_line,
    plural,
    progress_line,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (723, "12:03"), (11_045, "3:04:05")]
)
def test_a_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [(1, "process", "1 process"), (2, "process", "2 processes"), (1200, "row", "1,200 rows"), (0, "row", "0 rows")],
)
def test_a_number_of_things(n, noun, text):
    assert plural(n, noun) == text


def test_a_header_is_aligned_and_leaves_out_what_is_empty():
    assert header({"model": "tiny", "resumes": "", "machine": "CPU"}) == "  model    tiny\n  machine  CPU"
    assert header({"model": "tiny\nfrozen", "data": "x"}) == "  model  tiny\n         frozen\n  data   x"
    assert header({}) == ""


def test_counts_in_words():
    assert counted({"train": 600, "validation": 200, "dropped": 0}) == "600 train, 200 validation"
    assert counted({}) == counted({"x": 0}) == "none"
    nested = {"read": 1200, "dropped": {"not_accepted": 905, "repeated": 0}, "kept": {"train": 210}}
    assert counts_line(nested) == "1,200 read; dropped: 905 not_accepted; kept: 210 train"
    assert counts_line({"dropped": {}}) == "dropped: none"


def test_a_command_is_shown_as_a_person_types_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (
        command_line([sys.executable, f"{tmp_path}/src/eval.py", "/data/a b.yaml"])
        == "python src/eval.py '/data/a b.yaml'"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "cpu.yaml", f"{tmp_path}/src/sft.py"]
    assert command_line(launch) == "accelerate launch --config_file cpu.yaml src/sft.py"
    assert command_line(["vllm", "serve", str(tmp_path)]) == f"vllm serve {tmp_path}"


@pytest.mark.parametrize(
    ("device", "processes", "threads", "text"),
    [
        ("CPU", 1, 1, "CPU, 1 process of 1 thread, float32, sdpa attention"),
        ("CPU", 2, 4, "CPU, 2 processes of 4 threads, float32, sdpa attention"),
        ("NVIDIA H100", 8, 4, "NVIDIA H100, 8 processes, float32, sdpa attention"),
    ],
)
def test_a_machine_in_one_line(device, processes, threads, text):
    assert machine_line(device, processes, threads, "float32", "sdpa") == text


@pytest.mark.parametrize(
    ("done", "total", "before", "tokens", "seconds", "text"),
    [
        (64, 200, 0, 3204, 8, "x: 64 of 200 answers, 3,204 tokens, 400 tokens/s, 0:17 left"),
        (0, 32, 0, 1280, 64, "x: 0 of 32 answers, 1,280 tokens, 20 tokens/s"),  # nobody knows yet
        (2, 300, 0, 7586, 30, "x: 2 of 300 answers, 7,586 tokens, 253 tokens/s"),  # 200 others are half done
        (100, 200, 100, 0, 5, "x: 100 of 200 answers"),  # an earlier session did these
        (150, 200, 100, 0, 5, "x: 150 of 200 answers, 0:05 left"),
        (7, 0, 0, 0, 5, "x: 7 answers"),
        (200, 200, 0, 10, 0, "x: 200 of 200 answers, 10 tokens, 10,000,000,000 tokens/s"),
    ],
)
def test_a_line_of_progress(done, total, before, tokens, seconds, text):
    assert progress_line("x", "answers", done, total, before, tokens, seconds) == text


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**9), st.floats(0, 1e7))
def test_a_line_of_progress_is_one_line(done, total, before, tokens, seconds):
    text = progress_line("x", "answers", done, total, min(before, done), tokens, seconds)
    assert "\n" not in text and "{" not in text and "-" not in text and "inf" not in text and "nan" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(console, "SECONDS_A_LINE", 0)
    monkeypatch.setattr(console, "SECONDS_A_DRAWING", 0)
    monkeypatch.setenv("TERM", "xterm")


def work(stream, **how) -> list[int]:
    progress = Progress("tiny", "answers", 3, stream=stream, **how)

    def rows():
        for row in range(3):
            progress.count(10)
            yield row

    return list(progress.over(rows()))


def test_a_log_gets_lines_and_tokens_before_the_first_row(no_pause):
    log = io.StringIO()
    assert work(log) == [0, 1, 2]
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("tiny: 0 of 3 answers, 10 tokens, ")
    assert lines[-1].startswith("tiny: 3 of 3 answers, 30 tokens, ") and "\r" not in log.getvalue()


def test_a_log_says_nothing_of_short_work():
    log = io.StringIO()
    work(log)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_away(no_pause):
    terminal = Terminal()
    work(terminal)
    assert "tiny:  33%" in terminal.getvalue() and "30 tokens" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r") and "\n" not in terminal.getvalue()


@pytest.mark.parametrize("how", [{"plain": True}, {}], ids=["plain", "dumb terminal"])
def test_where_no_bar_is_wanted_there_are_lines(no_pause, monkeypatch, how):
    monkeypatch.setenv("TERM", "xterm" if how else "dumb")
    terminal = Terminal()
    work(terminal, **how)
    assert "\r" not in terminal.getvalue() and "3 of 3 answers" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_say_nothing(no_pause, monkeypatch, capsys, stream):
    monkeypatch.setenv("RANK", "1")
    told = stream()
    work(told)
    console.say("x")
    console.warn("x")
    assert told.getvalue() == "" and capsys.readouterr() == ("", "")


def test_only_known_noise_is_held_back_and_can_be_shown(monkeypatch, caplog):
    logger = logging.getLogger(console.FOUR_BIT)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(console, "_held", {})
    console.hold_back_noise()
    console.hold_back_noise()  # a second start in one process adds nothing
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("this processor cannot do it")
    assert [record.getMessage() for record in caplog.records] == ["this processor cannot do it"]
    assert len(logger.filters) == 1
    told = "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'"
    assert console.held_back(console.FOUR_BIT) == [told] and console.held_back("another") == []
