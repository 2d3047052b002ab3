"""Files that a GRPO run reads back: a damaged line loses only itself, and a run never ends by one."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain.grading.grader import Grader
from posttrain.methods.grpo.guard import Guard, best_line, fall, read_guard
from posttrain.training.callbacks import entry_of, forget_after

LINES = [{"step": step, "accuracy": 0.5, "truncated": 0.0, "correct": [1, 0]} for step in (0, 2, 4)]
DAMAGED = [
    b"[1]", b"{}", b"null", b'{"step": "2"}', b'{"step": 2', b"\xff\xfe", b"", b"[" * 100_000,
    b'{"step": 2, "correct": 7}',
    b'{"step": 2, "correct": [1], "accuracy": 0.5}', b'{"step": 2, "correct": [1, "x"], "accuracy": 0.5}',
]  # fmt: skip


def write(path, lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda text: repr(text[:30]))
def test_a_damaged_line_loses_only_itself(damaged, tmp_path, capsys):
    path = tmp_path / "guard.jsonl"
    write(path, [LINES[0], damaged, *LINES[1:]])
    assert read_guard(path, questions=2) == LINES
    forget_after(path, 2)
    assert read_guard(path, questions=2) == LINES[:2]
    assert ("1 of 4 lines are damaged" in capsys.readouterr().out) == (entry_of(damaged) is None)


def test_a_line_that_a_kill_cut_off_is_no_damage(tmp_path, capsys):
    path = tmp_path / "guard.jsonl"
    write(path, LINES)
    path.write_bytes(path.read_bytes()[:-5])
    forget_after(path, 100)
    assert read_guard(path) == LINES[:2] and capsys.readouterr().out == ""


@given(st.binary(max_size=200))
def test_no_bytes_end_the_reading(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "guard.jsonl"
    path.write_bytes(content)
    forget_after(path, 3)
    for line in read_guard(path):
        assert fall(line, line) is None and best_line([line]) is line


class Answering:
    """What the guard needs of a trainer: greedy answers, a grader, somewhere for figures."""

    def __init__(self, out, grader):
        from transformers import AutoTokenizer

        self.args, self.grader = SimpleNamespace(output_dir=str(out)), grader
        self.processing_class = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
        self._metrics = {"train": {"guard/accuracy": [], "guard/undecided": []}}
        self.window = SimpleNamespace(paused=contextlib.nullcontext)

    def answer_greedily(self, prompts):
        return [SimpleNamespace(text="\\boxed{3}", finish_reason="stop") for _ in prompts]


@pytest.mark.parametrize(
    ("lines", "step", "told", "steps"),
    [
        (LINES, 4, False, [0, 2, 4]),
        (LINES[1:], 4, True, [2, 4]),
        ([], 4, True, [4]),
        ([b"[1]", *LINES[1:]], 4, True, [2, 4]),
        (LINES, 0, False, [0]),  # killed before its first checkpoint: asked anew, not twice
    ],
)
def test_a_guard_goes_on_from_what_is_left(lines, step, told, steps, tmp_path, capsys):
    PartialState()
    write(tmp_path / "guard.jsonl", lines)
    rows = [{"prompt": [{"role": "user", "content": "1 + 2"}], "answer": answer} for answer in ("3", "4")]
    with Grader(workers=1) as grader:
        guard = Guard(Answering(tmp_path, grader), rows, "question_only", every=2)
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        guard.on_train_begin(None, state, None)
    assert [line["step"] for line in read_guard(tmp_path / "guard.jsonl")] == steps
    assert ("the answers of the start are gone" in capsys.readouterr().out) == told
