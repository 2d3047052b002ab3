"""Hold two evaluations against each other answer by answer: do two backends say the same with the same weights?"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from posttrain.evaluation.comparison import read_alike
from posttrain.evaluation.estimates import length_summary, rate
from posttrain.evaluation.results import read_metrics

CONTEXT = 24  # characters shown from the first that differs


@dataclass(frozen=True)
class Answer:
    """One answer of both. `character` is the first that differs, or None where the texts are the same."""

    question: str
    sample: int
    verdicts: tuple[str, str]
    character: int | None
    texts: tuple[str, str]


def first_difference(a: str, b: str) -> int | None:
    """Index of the first character that differs, the end of the shorter text included; None for equal texts."""
    return next((i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)


def read_answers(a: Path, b: Path) -> list[Answer]:
    """The answers that both directories evals/<run>/<benchmark> have; raises ComparisonError where settings differ."""
    left, right = ({(s["id"], s["sample"]): s for s in side} for side in read_alike(a, b, shared=True)[1:])
    pairs = [(place, left[place], right[place]) for place in left if place in right]
    return [
        Answer(
            *place,
            (one["verdict"], other["verdict"]),
            first_difference(one["completion"], other["completion"]),
            (one["completion"], other["completion"]),
        )
        for place, one, other in pairs
    ]


def agreement_table(a: Path, b: Path, shown: int) -> str:
    """How many answers are the same in text and in verdict, where texts part, and the `shown` that part first."""
    answers = read_answers(a, b)
    parted = sorted((x for x in answers if x.character is not None), key=lambda x: (x.character, x.question))
    counts = {
        "the same text": len(answers) - len(parted),
        "the same verdict": sum(x.verdicts[0] == x.verdicts[1] for x in answers),
        "right in both or in neither": sum(len({v == "correct" for v in x.verdicts}) == 1 for x in answers),
    }
    lines = [f"A: {backend_of(a)}", f"B: {backend_of(b)}", f"{len(answers):,} answers of both"]
    lines += [f"  {n:>6,} {rate(n, len(answers)):>6.1%}  {what}" for what, n in counts.items()]
    if places := length_summary([x.character for x in parted if x.character is not None]):
        lines.append("texts part at character " + ", ".join(f"{places[p]:.0f} ({p})" for p in ("p10", "p50", "p90")))
    for x in parted[:shown]:
        at = x.character or 0
        said = " | ".join(repr(text[at : at + CONTEXT]) for text in x.texts)
        lines.append(f"  {x.question} sample {x.sample}: {' | '.join(x.verdicts)}, from character {at}: {said}")
    return "\n".join(lines)


def backend_of(directory: Path) -> str:
    """What computed a result: `transformers 5.23.0, bfloat16, cpu`, as far as it says."""
    backend: dict[str, Any] = read_metrics(directory).get("backend") or {}
    name = " ".join(backend[key] for key in ("name", "version") if key in backend)
    return ", ".join([name or "unknown", *(backend[key] for key in ("dtype", "device") if key in backend)])
