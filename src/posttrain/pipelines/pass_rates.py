"""How often a model answers each question right, from its own verified samples: a dataset that knows its difficulty.

A sample passed where its verdict is `correct`, as in evaluation; one that the verifier could not decide counts neither
way.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from posttrain import atomic, digests, jsonl
from posttrain.data.manifest import Source, check_dataset, clear, split_path, write_manifest
from posttrain.data.rows import MESSAGES, QUESTIONS, by_content, read_parquet, row_id, write_table
from posttrain.errors import PosttrainError, check_writable
from posttrain.evaluation.estimates import wilson_interval
from posttrain.evaluation.results import GRADED, METRICS_FILE, SAMPLES_FILE
from posttrain.grading.grader import Verdict
from posttrain.locks import lock
from posttrain.pipelines.preference_data import SOURCE, Asked, Judged, merge, read_samples
from posttrain.pipelines.rollouts import ROLLOUTS_FILE

UNDECIDED = (Verdict.TIMEOUT, Verdict.ERROR)
ROUNDS = "round_*/rollouts"  # of a run of expert iteration
BARS = 10  # of the histogram in the manifest
SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("prompt", MESSAGES), ("completion", MESSAGES), ("answer", pa.string()),
        ("source", pa.string()), ("pass_rate", pa.float64()), ("pass_low", pa.float64()), ("pass_high", pa.float64()),
        ("samples", pa.int64()),
    ]
)  # fmt: skip


class PassRateError(PosttrainError):
    """Samples of which no pass rates can be made."""


@dataclass(frozen=True)
class RatedRow:
    """A question, a right answer of the model's own if it has any, and its pass rate with a 95 % interval."""

    id: str
    prompt: list[dict[str, str]]
    completion: list[dict[str, str]] | None
    answer: str
    source: str
    pass_rate: float
    pass_low: float
    pass_high: float
    samples: int


def rated(asked: Asked) -> RatedRow | None:
    """The row of a question; None where no sample was decided."""
    decided = [sample for sample in asked.samples if Verdict(sample.verdict) not in UNDECIDED]
    if not decided:
        return None
    passed = sum(sample.verdict == Verdict.CORRECT for sample in decided)
    low, high = wilson_interval(passed, len(decided))
    right = next(iter(asked.texts(1.0)), None)
    completion = None if right is None else [{"role": "assistant", "content": right}]
    rate = passed / len(decided)
    return RatedRow(asked.id, asked.prompt, completion, asked.answer, SOURCE, rate, low, high, len(decided))


def outside(row: RatedRow | None, band: tuple[float, float]) -> str | None:
    """Why a row is left out of the band, whose ends belong to it; None where it is kept."""
    if row is None:
        return "undecided"
    low, high = band
    return "too_hard" if row.pass_rate < low else "too_easy" if row.pass_rate > high else None


def write_pass_rates(
    paths: list[Path], out: Path, band: tuple[float, float], questions: Path | None, validation: int
) -> dict[str, Any]:
    """Write the questions of the samples in `paths` whose pass rate lies in `band`; returns the manifest's counts.

    `questions` is the dataset of whose training rows an evaluation's samples are. `validation` questions are held out.
    """
    files = [file for path in paths for file in samples_in(path)]
    known = known_questions(questions)
    merged = merge(entry for file in files for entry in read(file, known))
    reasons = ["unknown_question" if not asked.prompt else outside(rated(asked), band) for asked in merged]
    kept = [row for asked, why in zip(merged, reasons, strict=True) if why is None and (row := rated(asked))]
    counts = {"read": len(merged), "dropped": dict(Counter(why for why in reasons if why))}
    return _write(out, kept, validation, counts, band, files)


def samples_in(path: Path) -> list[Path]:
    """The sampling stages of a run of expert iteration, or the path itself."""
    rounds = sorted(path.glob(ROUNDS))
    return [found for found in rounds if (found / METRICS_FILE).is_file()] if rounds else [path]


def known_questions(dataset: Path | None) -> dict[str, dict[str, Any]]:
    """The training rows of a prepared dataset by id; held-out rows are not among them."""
    if dataset is None:
        return {}
    rows = read_parquet(split_path(dataset, check_dataset(dataset), "train"), QUESTIONS)
    return {row["id"]: row for row in rows}


def read(path: Path, known: dict[str, dict[str, Any]]) -> Iterator[Asked]:
    """Questions with their samples, of any of the three kinds; one that nobody knows the text of has no prompt."""
    if not (path / SAMPLES_FILE).is_file():
        yield from read_samples(path)
        return
    if not known:
        raise PassRateError(
            f"{path}: an evaluation names its questions by id alone: name the dataset they are of by --questions; its "
            f"training rows are taken, as a held-out question is never trained on"
        )
    remedy = f"remove {path} and evaluate again"
    if not (path / METRICS_FILE).is_file():
        raise PassRateError(f"{path}: has no {METRICS_FILE}; start its src/eval.py command again to finish it")
    digests.check_files(path, [SAMPLES_FILE], remedy)
    for line in jsonl.read_lines(path / SAMPLES_FILE, GRADED, remedy):
        row = known.get(line["id"], {"prompt": [], "answer": line["gold"]})
        name = row_id(*(message["content"] for message in row["prompt"])) if row["prompt"] else line["id"]
        judged = Judged(line["completion"], line["verdict"], line["finish_reason"])
        yield Asked(name, row["prompt"], row["answer"], [judged])


def _write(
    out: Path, rows: list[RatedRow], validation: int, counts: dict[str, Any], band: tuple[float, float],
    files: Iterable[Path],
) -> dict[str, Any]:  # fmt: skip
    if rows and validation >= len(rows):
        raise PassRateError(
            f"--validation {validation}: takes all {len(rows)} questions and leaves none to train on; lower it"
        )
    held = {row["id"] for row in by_content([{"id": row.id} for row in rows], validation)}
    splits = {"train": [row for row in rows if row.id not in held]}
    splits |= {"validation": [row for row in rows if row.id in held]} if held else {}
    if not splits["train"]:
        raise PassRateError(f"{out}: no question is left to train on; left out: {counts['dropped']}; widen --between")
    check_writable(out)
    lock(out)
    clear(out)
    for split, kept in splits.items():
        write_table(out / f"{split}.parquet", pa.Table.from_pylist([asdict(row) for row in kept], schema=SCHEMA))
    read = [_content_of(path) for path in files]
    digest = {str(path): atomic.sha256_file(path) for path in read}
    counts["kept"] = {split: len(kept) for split, kept in splits.items()}
    facts = {
        "columns": SCHEMA.names, "seed": None, "counts": counts, "tokens": None, "decontamination": None,
        "pass_rates": {"between": list(band), "questions_per_tenth": tenths(rows)},
    }  # fmt: skip
    source = Source("pass_rate", "that of the questions and of the model", None, digest)
    return write_manifest(out, [out / f"{split}.parquet" for split in splits], source, facts)["counts"]


def _content_of(path: Path) -> Path:
    """The file that holds the samples of a directory, or the file itself."""
    names = (SAMPLES_FILE, ROLLOUTS_FILE)
    return next((path / name for name in names if (path / name).is_file()), path)


def tenths(rows: Iterable[RatedRow]) -> list[int]:
    """How many rows lie in each tenth of the pass rates; 1 belongs to the last."""
    found = Counter(min(int(row.pass_rate * BARS), BARS - 1) for row in rows)
    return [found[bar] for bar in range(BARS)]
