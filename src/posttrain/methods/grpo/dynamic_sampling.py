"""Generations of chosen questions, in which those whose completions all earn the same are replaced by fresh ones.

Such a group has no advantage but 0: it teaches nothing, and costs what any other does (DAPO, section 3.2). TRL's
trainer generates for a round of questions as ever. Another round follows, of as many questions as places are still
free, until each place has a group with a signal or the recipe's bound is reached. Places that stay free hold groups
without a signal, of which no token is in the loss.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.console import say
from posttrain.errors import PosttrainError
from posttrain.methods.grpo import rounds
from posttrain.methods.grpo.questions import OUTCOMES, SAME_REWARD, SIGNAL, Questions
from posttrain.training.callbacks import ContinuedFile

QUESTIONS_FILE = "questions.jsonl"  # a line for each question that was asked
STATE_FILE = "questions.json"  # of a checkpoint
SURPLUS = "surplus"  # a group with a signal for which no place was left, as processes share a round evenly
REASONS = (*OUTCOMES[1:], SURPLUS)  # for which a question is skipped


@dataclass(frozen=True)
class Group:
    """One question that was asked, and what became of its completions; `tokens` are all of theirs."""

    id: str
    outcome: str
    right: int
    wrong: int
    undecided: int
    tokens: int
    round: int = 1
    trained: bool = True

    @property
    def reason(self) -> str | None:
        """Why it was skipped, None where it was not."""
        if self.trained:
            return None
        return SURPLUS if self.outcome == SIGNAL else self.outcome


class ChosenQuestions(ContinuedFile):
    """Draws the questions of each generation, and trains on them as they are. `generations` are drawn at a time."""

    def __init__(self, trainer: Any, questions: Questions, generations: int = 1) -> None:
        super().__init__(Path(trainer.args.output_dir) / QUESTIONS_FILE)
        self.trainer, self.questions = trainer, questions
        self.places = trainer.args.generation_batch_size // trainer.num_generations
        self.staleness = 0  # updates between the weights that sampled the generation at hand and those it trains
        if len(questions.rows) < (needed := generations * self.places):
            asks = "one generation asks" if generations == 1 else f"{generations} generations ask"
            raise PosttrainError(
                f"{len(questions.rows)} different questions are fewer than the {needed} that {asks}; "
                f"lower per_device_train_batch_size or gradient_accumulation_steps, or add questions"
            )

    def generation(self) -> rounds.Scored:
        """This process's share of one generation, as TRL's trainer scores it."""
        scored, groups = self.ask(self.questions.draw(self.places))
        self.settle(groups)
        return scored

    def ask(self, asked: list[dict[str, Any]]) -> tuple[rounds.Scored, list[Group]]:
        """Sample and score a group of completions for each question; every process gets all groups."""
        trainer, size = self.trainer, self.trainer.num_generations
        rows = [row for row in asked for _ in range(size)]
        share = len(rows) // trainer.accelerator.num_processes
        first = trainer.accelerator.process_index * share
        scored = trainer._generate_and_score_completions([dict(row) for row in rows[first : first + share]])
        figures = [each.view(-1, size).sum(1).tolist() for each in (trainer.judged.right, trainer.judged.undecided)]
        tokens, signal = trainer.judged.tokens.view(-1, size).sum(1).tolist(), trainer.signal.tolist()
        return scored, [
            Group(row["id"], outcome(differs, right, undecided, size), right, size - right - undecided, undecided, n)
            for row, differs, right, undecided, n in zip(asked, signal, *figures, tokens, strict=True)
        ]

    def settle(self, groups: Sequence[Group]) -> None:
        """Put a generation's groups into the history, the figures and the file; end a run that has nothing to learn."""
        totals, figures = self.questions.totals, self.trainer._metrics["train"]
        for group in groups:
            self.questions.note(group.id, group.outcome, group.right, group.wrong)
        self.questions.put_back()
        counts = account(groups)
        totals.update(counts)
        for name, count in {**counts, "rounds": max(group.round for group in groups)}.items():
            figures[f"questions/{name}"].append(float(count))
        if self.trainer.accelerator.is_main_process:
            step = self.trainer.state.global_step + 1
            self.append([{"step": step, **asdict(group)} for group in groups])
        if not any(group.outcome == SIGNAL for group in groups) and (left := self.questions.without_signal()):
            self.trainer.ended = f"no question gives a signal any more: {described(left)}"
            say(f"{self.path}: step {self.trainer.state.global_step + 1}: {self.trainer.ended}; the run stops here")

    def completions_are_there(self) -> None:
        """Called when a generation's completions are there, and none is graded yet."""

    def before_new_weights(self) -> None:
        """Called before a server gets new weights."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.ended:
            control.should_training_stop = control.should_log = True

    def save(self, checkpoint: Path) -> None:
        """Keep the history in a checkpoint, and with it whether the run is at its end."""
        atomic.write_json(checkpoint / STATE_FILE, {**self.questions.state(), "ended": self.trainer.ended})

    def restore(self, checkpoint: Path) -> None:
        """Go on from the history of a checkpoint; its bytes were held against the checkpoint's mark."""
        state = json.loads((checkpoint / STATE_FILE).read_text())
        self.trainer.ended = state.pop("ended")
        self.questions.restore(state)


class DynamicSampling(ChosenQuestions):
    """Replaces groups without a signal, in at most `max_batches` rounds for one generation."""

    def __init__(self, trainer: Any, questions: Questions, max_batches: int) -> None:
        super().__init__(trainer, questions)
        self.max_batches = max_batches

    def generation(self) -> rounds.Scored:
        """This process's share of the groups with a signal, and of others without loss where too few were found."""
        trainer, size = self.trainer, self.trainer.num_generations
        per_token = "token" in trainer.vllm_importance_sampling_mode
        before = {name: len(values) for name, values in trainer._metrics["train"].items()}
        groups: list[Group] = []
        kept, skipped, sizes, free = [], [], [], self.places
        while free and len(sizes) < self.max_batches:
            if not (asked := self.questions.draw(self._number(free))):
                break
            scored, found = self.ask(asked)
            sizes.append(len(asked))
            chosen = [i for i, group in enumerate(found) if group.outcome == SIGNAL][:free]
            free -= len(chosen)
            groups += [replace(g, round=len(sizes), trained=i in chosen) for i, g in enumerate(found)]
            whole = rounds.gathered(scored, trainer.accelerator, per_token)
            kept.append(rounds.rows_of(whole, chosen, size))
            skipped.append(rounds.rows_of(whole, [i for i in range(len(found)) if i not in chosen], size))
        rounds.combine(trainer._metrics["train"], before, sizes)
        self.settle(groups)
        trainer._metrics["train"]["effective_prompts"][-1] = float(self.places - free)
        empty = rounds.rows_of(rounds.join(skipped, per_token), range(free), size)
        return rounds.share_of(rounds.join([*kept, rounds.without_loss(empty)], per_token), trainer.accelerator)

    def _number(self, free: int) -> int:
        processes = self.trainer.accelerator.num_processes
        return number_to_ask(free, len(self.questions.waiting), self.trainer.num_generations, processes)


def number_to_ask(free: int, waiting: int, size: int, processes: int) -> int:
    """Questions for the free places, or a few more, so that processes have equally many completions; 0 where so many
    are not waiting any more.
    """
    whole = processes // math.gcd(processes, size)
    return min(-(-free // whole), waiting // whole) * whole


def outcome(differs: bool, right: int, undecided: int, size: int) -> str:
    """What a group of `size` completions taught, or why it taught nothing."""
    if differs:
        return SIGNAL
    if undecided == size:
        return "undecided"
    decided = {size - undecided: "all_right", 0: "all_wrong"}
    return decided.get(right, SAME_REWARD)


def account(groups: Sequence[Group]) -> dict[str, int]:
    """Questions asked, trained on and skipped for each reason, and the tokens that those skipped have cost."""
    reasons = Counter(group.reason for group in groups)
    counts = {"asked": len(groups), "trained": reasons[None], **{reason: reasons[reason] for reason in REASONS}}
    return counts | {"skipped_tokens": sum(group.tokens for group in groups if not group.trained)}


def described(left: dict[str, int]) -> str:
    """How many questions ended in which way, for a person."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(left.items()))
