"""Which question is asked next, by what it has answered so far in this run.

Every question has a time of its next draw, and the earliest is asked first. Where questions are chosen uniformly, draw
number c of a question comes at c + u, with u in [0, 1) drawn from seed, question and c: each is asked once, in shuffled
order, before any is asked again. Where the informative ones come more often, the next draw comes (½ + u) / chance
later: `chance` is the probability, under the Beta posterior of the question's being solved, that a group of completions
holds both right and wrong ones. Older draws count half at each new one, as the model moves on; that also bounds the
chance from below, so that no question waits for ever.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SIGNAL = "signal"
SAME_REWARD = "same_reward"
OUTCOMES = (SIGNAL, "all_right", "all_wrong", "undecided", SAME_REWARD)
PRIOR = 0.5  # of right and of wrong answers alike: Jeffreys' Beta(½, ½)
KEPT_EVIDENCE = 0.5  # of older draws, at each new one


@dataclass
class History:
    """One question's draws. `time` is that of its next one, `last` the number of its last one among all draws."""

    time: float
    draws: int = 0
    right: float = 0.0
    wrong: float = 0.0
    last: int = 0
    outcome: str = ""


class Questions:
    """Training questions and their history; the same in every process, and kept in checkpoints.

    rows: dictionaries with `id`, `prompt` and `answer`; rows of one prompt are one question, the first of them. `group`
    is how many completions a draw samples.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], seed: int, informative: bool, group: int) -> None:
        self.seed, self.informative, self.group = seed, informative, group
        by_prompt: dict[str, dict[str, Any]] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], row)
        self.rows = {row["id"]: row for row in by_prompt.values()}
        self.totals: Counter[str] = Counter()  # of the run: what `dynamic_sampling.account` counts
        self.draws = self.last_signal = 0
        self._place({}, [])

    def _place(self, known: dict[str, History], drawn: list[str]) -> None:
        self.history = {name: known.get(name) or History(uniform(self.seed, name, 0)) for name in self.rows}
        self.waiting = [(history.time, name) for name, history in self.history.items() if name not in drawn]
        self.drawn = drawn  # and not noted yet
        self.answered: list[str] = []  # and not put back yet
        heapq.heapify(self.waiting)

    def draw(self, number: int) -> list[dict[str, Any]]:
        """The next of the questions that wait; fewer where so many do not."""
        names = [heapq.heappop(self.waiting)[1] for _ in range(min(number, len(self.waiting)))]
        self.drawn += names
        return [self.rows[name] for name in names]

    def note(self, name: str, outcome: str, right: int, wrong: int) -> None:
        """What became of a drawn question: its outcome, and how many of its completions were right and wrong."""
        history = self.history[name]
        self.draws += 1
        history.draws += 1
        history.last, history.outcome = self.draws, outcome
        self.drawn.remove(name)
        self.answered.append(name)
        history.right = KEPT_EVIDENCE * history.right + right
        history.wrong = KEPT_EVIDENCE * history.wrong + wrong
        if outcome == SIGNAL:
            self.last_signal = history.last
        later = uniform(self.seed, name, history.draws)
        if self.informative:
            history.time += (0.5 + later) / chance_of_signal(history.right, history.wrong, self.group)
        else:
            history.time = history.draws + later

    def put_back(self) -> None:
        """Let the noted questions wait for their next draw; called when a batch is full."""
        for name in self.answered:
            heapq.heappush(self.waiting, (self.history[name].time, name))
        self.answered = []

    def without_signal(self) -> dict[str, int] | None:
        """How many questions had each outcome, if all were asked since the last one with a signal; else None."""
        if any(history.last <= self.last_signal for history in self.history.values()):
            return None
        return dict(Counter(history.outcome for history in self.history.values()))

    def state(self) -> dict[str, Any]:
        """All that draws depend on, for a checkpoint; questions never asked are left out."""
        asked = {name: asdict(history) for name, history in self.history.items() if history.draws}
        counts = {"totals": dict(self.totals), "draws": self.draws, "last_signal": self.last_signal}
        return {"history": asked, "drawn": self.drawn, **counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        self.totals, self.draws, self.last_signal = Counter(state["totals"]), state["draws"], state["last_signal"]
        known = {name: History(**history) for name, history in state["history"].items()}
        self._place(known, list(state["drawn"]))


def uniform(seed: int, name: str, draw: int) -> float:
    """A number in [0, 1) for each draw of each question, the same on every machine."""
    digest = hashlib.blake2b(f"{seed} {draw} {name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def chance_of_signal(right: float, wrong: float, group: int) -> float:
    """Probability that `group` completions are neither all right nor all wrong, under the posterior of the evidence."""
    return 1 - chance_of_all(PRIOR + right, PRIOR + wrong, group) - chance_of_all(PRIOR + wrong, PRIOR + right, group)


def chance_of_all(a: float, b: float, group: int) -> float:
    """The mean of p to the power of `group` where p is distributed as Beta(a, b)."""
    chance = 1.0
    for i in range(group):
        chance *= (a + i) / (a + b + i)
    return chance
