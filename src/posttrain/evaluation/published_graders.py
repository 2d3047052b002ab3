"""Imitations of published graders with our Grader's interface; they compare scores and never give rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.results import read_samples
from posttrain.grading.grader import Grade, Grader, Verdict
from posttrain.grading.pool import SymbolicPool
from posttrain.grading.reading.extract import extract_answer
from posttrain.grading.values.rational import Tolerance

NAMES = ("mathverify", "qwen", "drgrpo")
DEADLINE_SECONDS = 10.0  # they have none of their own that holds; an item beyond it is a timeout


def make_grader(
    name: str, form: str, workers: int | None = None, answer_tolerance: dict[str, Any] | None = None
) -> Grader:
    """The grader of that name, for completions whose prompt asks for `form`; the published ones have tolerances of
    their own.
    """
    if name != "posttrain":
        return PublishedGrader(name, form, workers)
    return Grader(workers, tolerance=Tolerance(**answer_tolerance) if answer_tolerance else None)


class PublishedGrader(Grader):
    """Verdicts as the published grader gives them; answers, which are only shown and voted with, as ours reads them."""

    def __init__(self, name: str, form: str, workers: int | None = None) -> None:
        super().__init__(workers)
        function = "drgrpo_tags" if (name, form) == ("drgrpo", "tags") else name
        self.published = SymbolicPool(workers, DEADLINE_SECONDS, function)
        self.decided: dict[tuple[str, str], bool | str] = {}

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.published.close()

    def grade(
        self, golds: Sequence[str], completions: Sequence[str], truncated: Sequence[bool], lenient: bool = False
    ) -> list[Grade]:
        """One grade per completion, in order. What counts as marked is the published grader's choice alone."""
        wanted = list(dict.fromkeys(zip(golds, completions, strict=True)))
        outcomes = {pair: self.decided[pair] for pair in wanted if pair in self.decided}
        pairs = [pair for pair in wanted if pair not in outcomes]
        outcomes |= {pairs[index]: outcome for index, outcome in self.published.compare(pairs)}
        # The machine may have been busy: another time it is tried again.
        self.decided |= {pair: o for pair, o in outcomes.items() if o not in (Verdict.TIMEOUT, Verdict.ERROR)}
        grades = []
        for gold, completion, cut in zip(golds, completions, truncated, strict=True):
            outcome = outcomes[gold, completion]
            if outcome == "unparsed":
                grades.append(Grade(Verdict.TRUNCATED if cut else Verdict.UNPARSED, None))
                continue
            verdict = (Verdict.CORRECT if outcome else Verdict.WRONG) if isinstance(outcome, bool) else Verdict(outcome)
            grades.append(Grade(verdict, extract_answer(completion, lenient=True), symbolic=True))
        return grades


def beside(directory: Path, name: str) -> str:
    """What the published grader would have said of a finished evaluation, and where it differs, for the terminal."""
    settings, samples = read_samples(directory)
    form = settings["prompt"]["form"]
    golds, texts = [s["gold"] for s in samples], [s["completion"] for s in samples]
    with make_grader(name, form) as grader:
        grades = grader.grade(golds, texts, [s["finish_reason"] == "length" for s in samples])
    theirs = [grade.verdict is Verdict.CORRECT for grade in grades]
    ours = [s["verdict"] == Verdict.CORRECT for s in samples]
    lines = [f"{directory}: {name} {sum(theirs)} of {len(samples)} correct, here {sum(ours)}"]
    for sample, other, own in zip(samples, theirs, ours, strict=True):
        if other != own:
            place, verdict = f"{sample['id']}/{sample['sample']}", "correct" if other else "not correct"
            lines.append(f"  {place}: {verdict} by {name}: {sample['answer']!r} for {sample['gold']!r}")
    return "\n".join(lines)
