"""Tables of kept results in Markdown: a row a run, every figure with its interval and the test against its start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.evaluation.comparison import Comparison, compare
from posttrain.evaluation.estimates import in_percent
from posttrain.evaluation.reference import setting_of
from posttrain.evaluation.results import METRICS_FILE, read_metrics
from posttrain.report.kept.keep import ABOUT_FILE, About, read_about

BEGIN, END = "<!-- begin: python src/results_table.py -->", "<!-- end: python src/results_table.py -->"
NOTHING = "No result is kept yet."
SHORT_HEADS = ("GSM8K, all 1,319 questions", "accuracy", "against the start", "p", "in form", "cut off", "tokens")
FULL_HEADS = (
    "run", "questions", "accuracy", "against the start", "better, worse", "p", "could have shown", "in form", "cut off",
    "tokens", "hours", "files",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One kept result. `comparison` is with the run it started from, None for a start."""

    name: str
    directory: Path
    about: About
    metrics: dict[str, Any]
    comparison: Comparison | None

    @property
    def start(self) -> str:
        return self.about.base or self.name


def read_rows(root: Path) -> list[Row]:
    """Every kept result, each start before what began there, in the order of names and benchmarks."""
    rows = []
    for path in sorted(root.glob(f"*/{ABOUT_FILE}")):
        about = read_about(path.parent)
        for metrics in sorted(path.parent.glob(f"*/{METRICS_FILE}")):
            rows.append(read_row(root, metrics.parent, about))
    return sorted(rows, key=lambda row: (row.start, row.metrics["benchmark"], row.about.base is not None, row.name))


def read_row(root: Path, directory: Path, about: About) -> Row:
    """A result beside that of its start, on the questions that both were asked."""
    comparison = None
    if about.base:
        comparison = compare(root / about.base / directory.name, directory, shared=True)
    return Row(directory.parent.name, directory, about, read_metrics(directory), comparison)


def full_page(rows: list[Row], page: Path) -> str:
    """A table for every start and benchmark, and the command of each run; links lead from `page`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.start, row.metrics["benchmark"]), []).append(row)
    parts = []
    for (_, benchmark), members in groups.items():
        model = Path(members[0].metrics["checkpoint"]["name"]).name
        parts += [f"## {model} on {benchmark}: {setting_of(members[0].metrics)}", ""]
        parts += [*markdown(FULL_HEADS, [full_cells(row, page) for row in members]), ""]
        parts += [f"- {row.about.title}: `{row.about.command}`" for row in members if row.about.command]
        parts += [""]
    return "\n".join(parts).strip() or NOTHING


def short_table(rows: list[Row], page: Path) -> str:
    """The table of the README: GSM8K's whole test set, the start and what was made of it."""
    shown = [row for row in rows if row.metrics["benchmark"] == "gsm8k" and row.metrics["limit"] is None]
    return "\n".join(markdown(SHORT_HEADS, [short_cells(row, page) for row in shown])) if shown else NOTHING


def markdown(heads: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]


def short_cells(row: Row, page: Path) -> list[str]:
    metrics = row.metrics
    link = f"[{row.about.title}]({link_to(row.directory / METRICS_FILE, page)})"
    return [link, accuracy(metrics), difference(row), p_value(row), *rates(metrics)]


def full_cells(row: Row, page: Path) -> list[str]:
    metrics, compared, limit = row.metrics, row.comparison, row.metrics["limit"]
    files = [METRICS_FILE, *(["../run.json"] if (row.directory.parent / "run.json").is_file() else [])]
    return [
        row.about.title,
        f"all {metrics['questions']:,}" if limit is None else f"{metrics['questions']:,} of them",
        accuracy(metrics),
        difference(row),
        f"+{len(compared.better)} −{len(compared.worse)}" if compared else "",
        p_value(row),
        f"{compared.detectable:.1%}" if compared else "",
        *rates(metrics),
        "" if row.about.hours is None else f"{row.about.hours:.1f}",
        " ".join(f"[{Path(name).stem}]({link_to(row.directory / name, page)})" for name in files),
    ]


def accuracy(metrics: dict[str, Any]) -> str:
    found = metrics["accuracy"]
    return in_percent(found["value"], found["low"], found["high"])


def difference(row: Row) -> str:
    """Points against the start, and on how many questions where it is not all of the row's."""
    if not (found := row.comparison):
        return ""
    fewer = "" if found.questions == row.metrics["questions"] else f" (on {found.questions:,})"
    return in_percent(found.difference, found.low, found.high, "+") + fewer


def p_value(row: Row) -> str:
    return f"{row.comparison.p:.2g}" if row.comparison else ""


def rates(metrics: dict[str, Any]) -> list[str]:
    """Share in the prompt's form, share cut off, mean length in tokens."""
    tokens = metrics["tokens"]["all"]
    return [f"{metrics['format_rate']:.1%}", f"{metrics['truncation_rate']:.1%}", f"{tokens['mean']:.0f}"]


def link_to(file: Path, page: Path) -> str:
    return file.resolve().relative_to(page.resolve().parent).as_posix()


def put(text: str, table: str, page: Path) -> str:
    """The text of a page with the table between its markers; raises PosttrainError where the page has none."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise PosttrainError(f"{page}: has no line {BEGIN} and after it {END}; write both where the table belongs")
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"
