"""One grader for rewards, rejection sampling, data preparation and evaluation: what became of a completion, and why."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from posttrain.grading.pool import SymbolicPool
from posttrain.grading.reading.extract import extract_answer, has_closed_answer
from posttrain.grading.reading.golds import read_gold
from posttrain.grading.values.exact import equal, unknown
from posttrain.grading.values.rational import Tolerance

VERSION = "5"  # of the rules; a verdict may change with it
# Samples of one question repeat its gold and their answers.
MAX_VOTED = 200  # characters of an answer that is compared with other answers, not with a gold
MAX_PAIRS = 2016  # of one question: those of 64 different answers
equal_or_unknown = functools.lru_cache(maxsize=2**14)(equal)


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

    def __init__(
        self, workers: int | None = None, deadline_seconds: float = 2.0, tolerance: Tolerance | None = None
    ) -> None:
        """`tolerance` is for golds that are rounded; without it every comparison is exact."""
        self.tolerance = tolerance
        self.pool = SymbolicPool(workers, deadline_seconds, tolerance=tolerance)
        self.known: dict[tuple[str, str], bool] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def grade(
        self, golds: Sequence[str], completions: Sequence[str], truncated: Sequence[bool], lenient: bool = False
    ) -> list[Grade]:
        """One grade per completion, in order. Never raises on what a model wrote.

        `lenient` takes unmarked answers too: for comparison with other graders, never for training.
        """
        golds = [read_gold(gold) if gold.strip() else "" for gold in golds]  # no answer equals none
        # Cut off, a model may have been about to write more: only an answer with an end is one.
        answers = [
            extract_answer(completion, lenient) if not cut or has_closed_answer(completion) else None
            for completion, cut in zip(completions, truncated, strict=True)
        ]
        decided = [
            None if a is None else equal_or_unknown(g, a, unknown, self.tolerance)
            for g, a in zip(golds, answers, strict=True)
        ]
        pairs = [(g, a) for g, a, d in zip(golds, answers, decided, strict=True) if a is not None and d is None]
        compared = self._compare(pairs)
        grades = []
        for gold, answer, verdict, cut in zip(golds, answers, decided, truncated, strict=True):
            if answer is None:
                grades.append(Grade(Verdict.TRUNCATED if cut else Verdict.UNPARSED, None))
            else:
                outcome = compared[gold, answer] if verdict is None else verdict
                grades.append(Grade(_verdict(outcome), answer, symbolic=verdict is None))
        return grades

    def votes(self, questions: Sequence[Sequence[Grade]]) -> list[list[int | None]]:
        """Classes of equal answers among the samples of each question: 0 is the gold's, None gives no answer.

        Two wrong answers are equal where the comparison says so in both directions, and by way of a third. Pairs grow
        with the square of the samples: long answers are equal to themselves only, and of many the rest is, too.
        """
        wrong = [sorted({g.answer for g in grades if _is_other(g)}) for grades in questions]
        short = [[answer for answer in answers if len(answer) <= MAX_VOTED] for answers in wrong]
        pairs = [p for answers in short for p in itertools.islice(itertools.combinations(answers, 2), MAX_PAIRS)]
        there = self._equal(pairs)
        both = self._equal([(b, a) for a, b in there])
        return [_classes(grades, {(a, b) for b, a in both}) for grades in questions]

    def _equal(self, pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of the pairs whose second is equal to their first."""
        decided = {pair: equal_or_unknown(*pair, unknown, None) for pair in set(pairs)}
        compared = self._compare([pair for pair, outcome in decided.items() if outcome is None])
        return {p for p, outcome in decided.items() if (compared[p] if outcome is None else outcome) is True}

    def _compare(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool | str]:
        """What became of each pair. A timeout or an error is not remembered: the machine may have been busy."""
        compared: dict[tuple[str, str], bool | str] = {pair: self.known[pair] for pair in pairs if pair in self.known}
        new = sorted(set(pairs) - set(compared))
        compared |= {new[index]: outcome for index, outcome in self.pool.compare(new)}
        self.known |= {pair: outcome for pair, outcome in compared.items() if isinstance(outcome, bool)}
        return compared


def _verdict(outcome: bool | str) -> Verdict:
    if isinstance(outcome, bool):
        return Verdict.CORRECT if outcome else Verdict.WRONG
    return Verdict(outcome)


def _is_other(grade: Grade) -> bool:
    return grade.answer is not None and grade.verdict is not Verdict.CORRECT


def _classes(grades: Sequence[Grade], equals: set[tuple[str, str]]) -> list[int | None]:
    leader = {grade.answer: grade.answer for grade in grades if _is_other(grade)}
    for a, b in sorted(equals):
        if a in leader and b in leader:
            kept, gone = leader[a], leader[b]
            leader = {answer: kept if leads == gone else leads for answer, leads in leader.items()}
    numbers = {leads: number for number, leads in enumerate(dict.fromkeys(leader.values()), start=1)}
    return [
        0 if grade.verdict is Verdict.CORRECT else numbers[leader[grade.answer]] if _is_other(grade) else None
        for grade in grades
    ]
