"""One grader for rewards, rejection sampling, data preparation and evaluation: what became of a completion, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from posttrain.verifier.exact import equal
from posttrain.verifier.extract import extract_answer, has_closed_answer
from posttrain.verifier.pool import SymbolicPool

VERSION = "2"  # of the rules; a verdict may change with it


class Verdict(StrEnum):
    """What became of one sample. Every sample has exactly one, so the counts add up to the number of samples."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # the model stopped, and gives no complete answer
    TRUNCATED = "truncated"  # the model was cut off before a complete answer
    TIMEOUT = "timeout"  # comparing took longer than the deadline
    ERROR = "error"


@dataclass(frozen=True)
class Grade:
    """A verdict, the answer it is about (None where there was none), and whether algebra was needed for it."""

    verdict: Verdict
    answer: str | None
    symbolic: bool = False


class Grader:
    """Grades completions; what only algebra decides goes to processes that are killed at the deadline.

    A context manager. The processes start with the first pair that needs them; verdicts are remembered by gold and
    answer, as samples of one question repeat.
    """

    def __init__(self, workers: int | None = None, deadline_seconds: float = 2.0, lenient: bool = False) -> None:
        self.lenient = lenient  # take unmarked answers too; for comparison with other graders, never for training
        self.pool = SymbolicPool(workers, deadline_seconds)
        self.known: dict[tuple[str, str], bool | str] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def grade(self, golds: Sequence[str], completions: Sequence[str], truncated: Sequence[bool]) -> list[Grade]:
        """One grade per completion, in order. Never raises on what a model wrote."""
        # Cut off, a model may have been about to write more: only an answer with an end is one.
        answers = [
            extract_answer(completion, self.lenient) if not cut or has_closed_answer(completion) else None
            for completion, cut in zip(completions, truncated, strict=True)
        ]
        decided = [None if a is None else equal(g, a) for g, a in zip(golds, answers, strict=True)]
        pairs = [(g, a) for g, a, d in zip(golds, answers, decided, strict=True) if a is not None and d is None]
        self._compare(sorted({pair for pair in pairs if pair not in self.known}))
        grades = []
        for gold, answer, verdict, cut in zip(golds, answers, decided, truncated, strict=True):
            if answer is None:
                grades.append(Grade(Verdict.TRUNCATED if cut else Verdict.UNPARSED, None))
            else:
                outcome = self.known[gold, answer] if verdict is None else verdict
                grades.append(Grade(_verdict(outcome), answer, symbolic=verdict is None))
        return grades

    def _compare(self, pairs: list[tuple[str, str]]) -> None:
        for index, outcome in self.pool.compare(pairs):
            self.known[pairs[index]] = outcome


def _verdict(outcome: bool | str) -> Verdict:
    if isinstance(outcome, bool):
        return Verdict.CORRECT if outcome else Verdict.WRONG
    return Verdict(outcome)
