"""The tiny world: generated word problems that a model of under a million parameters can learn on a laptop.

A problem follows one quantity through one to four operations. Its worked solution writes each operation as an equation
and ends in `\\boxed{}`. The same problems also exist as plain text, without chat, box or stop, which is what the tiny
base model is made from; so supervised fine-tuning has to teach exactly what it has to teach a real base model.
"""

import random
from dataclasses import dataclass

from posttrain.data.rows import Row, TextRow, chat_row, text_row

NAMES = ("Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gita", "Hugo")
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "stones", "stamps")

# Each phrase states one operation on the quantity that the problem follows; {n} is the operand.
PHRASES = {
    "+": ("{name} buys {n} more.", "{name} finds {n} more.", "A friend gives {name} {n} more."),
    "-": ("{name} loses {n}.", "{name} gives away {n}.", "{name} sells {n}."),
    "*": ("Now {name} gets {n} times as many.", "The number grows {n} times."),
    "/": ("{name} keeps one of {n} equal parts.", "{name} shares them equally among {n} people."),
}
LEVELS = (1, 2, 3, 4)  # operations in a problem
RANGE = (0, 50)  # every quantity of training and of the in-range sets
LARGE_RANGE = (51, 99)  # every quantity of `test_large`, met nowhere else
TEXT_EQUATIONS = 0.5  # share of plain-text lines that are bare arithmetic
TEXT_LINES = 6  # lines in one plain-text document
EQUATIONS_PER_LINE = 4  # in a line of bare arithmetic


@dataclass(frozen=True)
class Problem:
    """One word problem; `steps` are (operator, operand) pairs applied from left to right to `start`."""

    name: str
    thing: str
    start: int
    steps: tuple[tuple[str, int], ...]
    phrases: tuple[str, ...]

    @property
    def values(self) -> list[int]:
        """The quantity at the start and after each step; the last one is the answer."""
        values = [self.start]
        for operator, operand in self.steps:
            values.append(apply_operator(operator, values[-1], operand))
        return values

    @property
    def question(self) -> str:
        story = [f"{self.name} has {self.start} {self.thing}."]
        for phrase, (_, operand) in zip(self.phrases, self.steps, strict=True):
            story.append(phrase.format(name=self.name, n=operand))
        return " ".join(story) + f" How many {self.thing} are there now?"

    @property
    def equations(self) -> list[str]:
        values = self.values
        return [
            f"{before}{operator}{operand}={after}."
            for before, (operator, operand), after in zip(values, self.steps, values[1:], strict=False)
        ]

    @property
    def solution(self) -> str:
        """What supervised fine-tuning teaches: the equations, then the answer in a box."""
        return " ".join([*self.equations, f"The answer is \\boxed{{{self.values[-1]}}}."])

    @property
    def plain_text(self) -> str:
        """The same problem as the base model meets it: one line of prose, no box, no stop."""
        return " ".join([self.question, *self.equations, f"There are {self.values[-1]} {self.thing}."])


def apply_operator(operator: str, value: int, operand: int) -> int:
    """The value after one step. Division must be exact; anything else is a fault of the generator."""
    if operator == "+":
        return value + operand
    if operator == "-":
        return value - operand
    if operator == "*":
        return value * operand
    assert operator == "/" and value % operand == 0, f"{value} {operator} {operand} is not a step of this world"
    return value // operand


def draw_step(rng: random.Random, value: int, low: int, high: int) -> tuple[str, int]:
    """A random (operator, operand) that keeps the quantity a whole number within [low, high]."""
    choices: list[tuple[str, int]] = []
    span = max(9, (high - low) // 4)
    for operator in rng.sample("+-*/", 4):
        if operator == "+" and value < high:
            choices.append(("+", rng.randint(1, min(span, high - value))))
        elif operator == "-" and value > low:
            choices.append(("-", rng.randint(1, min(span, value - low))))
        elif operator == "*":
            choices += [("*", n) for n in (2, 3, 4) if value and value * n <= high][:1]
        elif operator == "/":
            choices += [("/", n) for n in (2, 3, 4) if value >= low * n and value and value % n == 0][:1]
    return choices[0]


def draw_problem(rng: random.Random, n_steps: int, low: int, high: int) -> Problem:
    """A random problem of `n_steps` operations whose quantity stays within [low, high] throughout."""
    value = start = rng.randint(max(low, 2), low + (high - low) * 2 // 3)
    steps: list[tuple[str, int]] = []
    for _ in range(n_steps):
        operator, operand = draw_step(rng, value, low, high)
        steps.append((operator, operand))
        value = apply_operator(operator, value, operand)
    phrases = tuple(rng.choice(PHRASES[operator]) for operator, _ in steps)
    return Problem(rng.choice(NAMES), rng.choice(THINGS), start, tuple(steps), phrases)


def problem_splits(seed: int, n_train: int, n_test: int) -> dict[str, list[Row]]:
    """Train, validation, one test set per number of steps, and `test_large`; no question stands in two of them."""
    seen: set[str] = set()
    rng = random.Random(seed)
    splits = {f"test_{level}step": _draw_rows(rng, n_test, (level,), RANGE, seen) for level in LEVELS}
    splits["test_large"] = _draw_rows(rng, n_test, (1, 2), LARGE_RANGE, seen)
    splits["validation"] = _draw_rows(rng, n_test, LEVELS, RANGE, seen)
    splits["train"] = _draw_rows(rng, n_train, LEVELS, RANGE, seen)
    return splits


def _draw_rows(
    rng: random.Random, n: int, levels: tuple[int, ...], bounds: tuple[int, int], seen: set[str]
) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < n:
        problem = draw_problem(rng, rng.choice(levels), *bounds)
        if problem.question not in seen:
            seen.add(problem.question)
            source = f"tiny_world/{len(problem.steps)}step"
            rows.append(chat_row(problem.question, problem.solution, str(problem.values[-1]), source))
    return rows


def text_splits(seed: int, n_lines: int, held_out: set[str]) -> dict[str, list[TextRow]]:
    """Plain-text documents for language modelling, free of the held-out questions; one in fifty is for validation."""
    rng = random.Random(seed + 1)
    documents = []
    for _ in range(n_lines // TEXT_LINES):
        lines = [_text_line(rng, held_out) for _ in range(TEXT_LINES)]
        documents.append(text_row("\n".join(lines) + "\n", "tiny_world/text"))
    held = max(1, len(documents) // 50)
    return {"train": documents[held:], "validation": documents[:held]}


def _text_line(rng: random.Random, held_out: set[str]) -> str:
    if rng.random() < TEXT_EQUATIONS:
        return " ".join(draw_problem(rng, 1, *RANGE).equations[0] for _ in range(EQUATIONS_PER_LINE))
    while (problem := draw_problem(rng, rng.choice(LEVELS), *RANGE)).question in held_out:
        pass
    return problem.plain_text
