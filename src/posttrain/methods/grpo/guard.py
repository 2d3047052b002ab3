"""The guard of a GRPO run: fixed questions answered greedily as it goes, the best checkpoint kept, a fall ends it."""

from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from posttrain.console import say
from posttrain.data.prompts import render_prompt
from posttrain.evaluation.comparison import mcnemar
from posttrain.grading.grader import Grade, Verdict
from posttrain.methods.grpo.rewards import UNDECIDED
from posttrain.training.callbacks import ContinuedFile, forget_after, sound_entries

GUARD_FILE = "guard.jsonl"
SIGNIFICANT = 0.01  # two-sided p of McNemar's test against the start


class Guard(ContinuedFile):
    """Accuracy on `rows` before the first step and every `every` steps; `guard.jsonl` is all its memory."""

    def __init__(self, trainer: Any, rows: list[dict[str, Any]], prompt: str, every: int) -> None:
        super().__init__(Path(trainer.args.output_dir) / GUARD_FILE)
        self.trainer, self.rows, self.every = trainer, rows, every
        texts = [render_prompt(prompt, row["prompt"], trainer.processing_class) for row in rows]
        self.prompts = trainer.processing_class(texts, add_special_tokens=False)["input_ids"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        lines = self._lines(state, state.global_step)
        if state.global_step == 0:
            if state.is_world_process_zero:
                forget_after(self.path, -1)  # of a start that was killed before its first checkpoint
            self._ask(state)
        elif not lines or lines[0]["step"]:
            first = lines[0]["step"] if lines else self._ask(state)["step"]
            say(f"{self.path}: the answers of the start are gone; a fall is measured from step {first} on")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every:
            return
        line = self._ask(state)
        lines = [*self._lines(state, state.global_step - 1), line]
        if best_line(lines) is line:
            state.best_metric = line["accuracy"]
            state.best_global_step = state.global_step
            state.best_model_checkpoint = str(self.path.parent / f"checkpoint-{state.global_step}")
            control.should_save = control.should_log = True
        if fault := fall(lines[0], line):
            control.should_training_stop = control.should_log = True
            if state.is_world_process_zero:
                say(f"{self.path}: step {state.global_step}: {fault}; the run stops here")

    def _lines(self, state: Any, until: int) -> list[dict[str, Any]]:
        """The sound lines up to a step, the same in every process; others are left out."""
        found = read_guard(self.path, len(self.rows)) if state.is_world_process_zero else []
        return broadcast_object_list([[line for line in found if line["step"] <= until]], from_process=0)[0]

    def _ask(self, state: Any) -> dict[str, Any]:
        """Every process asks, grades and so decides alike; the main one writes."""
        with self.trainer.window.paused():
            samples = self.trainer.answer_greedily(self.prompts)
            golds = [row["answer"] for row in self.rows]
            cut = [sample.finish_reason == "length" for sample in samples]
            grades = self.trainer.grader.grade(golds, [sample.text for sample in samples], cut)
        correct, share = outcomes(grades)
        line = {
            "step": state.global_step, "accuracy": share, "truncated": sum(cut) / len(cut), "correct": correct,
        }  # fmt: skip
        self.trainer._metrics["train"]["guard/accuracy"].append(share)
        self.trainer._metrics["train"]["guard/undecided"].append(float(correct.count(None)))
        if state.is_world_process_zero:
            self.append([line])
        return line


def outcomes(grades: list[Grade]) -> tuple[list[int | None], float]:
    """1 or 0 for each answer, None where the verifier could not decide, and the share of 1 among the decided ones."""
    correct = [None if grade.verdict in UNDECIDED else int(grade.verdict == Verdict.CORRECT) for grade in grades]
    decided = [answer for answer in correct if answer is not None]
    return correct, sum(decided) / max(1, len(decided))


def read_guard(path: Path, questions: int | None = None) -> list[dict[str, Any]]:
    """The guard's sound lines, the start first; `questions` is how many answers each must have."""
    entries = sound_entries(path) if path.is_file() else []
    return [entry for entry in entries if entry and is_sound(entry, questions)]


def is_sound(entry: dict[str, Any], questions: int | None) -> bool:
    """Whether a line holds what the guard writes."""
    correct = entry.get("correct")
    known = isinstance(correct, list) and all(answer in (0, 1, None) for answer in correct)
    return known and isinstance(entry.get("accuracy"), float) and questions in (None, len(correct))


def best_line(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of the highest accuracy, the earliest of equals."""
    return max(lines, key=lambda line: (line["accuracy"], -line["step"]))


def fall(start: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What to say where accuracy lies significantly below its start, else None."""
    pairs = [p for p in zip(start["correct"], now["correct"], strict=True) if None not in p]  # None is undecided
    lost, gained = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    p = mcnemar(lost, gained)
    if lost <= gained or p >= SIGNIFICANT:
        return None
    return f"accuracy fell from {start['accuracy']:.1%} to {now['accuracy']:.1%} (McNemar p = {p:.2g})"
