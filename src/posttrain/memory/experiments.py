"""What a memory is asked with: banks in which the facts stand, are mixed up, are gone, or are others.

With the edited bank, the right answer is the one that the bank now states; with all others it is the truth.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.memory.bank.questions import Fact, Question, option_object
from posttrain.memory.data import counterfactual, edited_row
from posttrain.memory.inference import Reader

OTHERS = 1000  # rows that nobody asks about, which `others_edited` edits


@dataclass(frozen=True)
class Asked:
    """A question with its fact and the answer that is right under the bank it is asked with."""

    question: Question
    fact: Fact
    gold: str


@dataclass(frozen=True)
class Experiment:
    """One bank, or None for the frozen model alone, and what is asked with it.

    rekeyed: rows are found by what they say now; false where other contents shall stand behind the keys that were there
    """

    bank: Tensor | None
    asked: list[Asked]
    rekeyed: bool = True


def experiment(
    name: str, reader: Reader, pairs: list[tuple[Question, Fact]], facts: list[Fact], seed: int
) -> Experiment:
    """The bank of this name, and the questions with what is right under it.  facts: all of the bank's"""
    true = reader.memory.bank
    asked = [Asked(question, fact, question.answer) for question, fact in pairs]
    if name == "edited":
        return edited_experiment(reader, pairs, seed)
    if name == "shuffled":
        return Experiment(shuffled(true, reader.description["config"].pad_id, seed), asked, rekeyed=False)
    if name == "empty":
        return Experiment(torch.full_like(true, reader.description["config"].pad_id), asked)
    if name == "removed":
        return Experiment(without(true, pairs, reader.description["config"].pad_id), asked)
    if name == "others_edited":
        return Experiment(others_edited(reader, pairs, facts, seed), asked)
    return Experiment(true if name == "true" else None, asked)


def shuffled(bank: Tensor, pad_id: int, seed: int) -> Tensor:
    """The bank with the contents of its filled rows moved in one circle, in random order: none stays where it was."""
    filled = torch.nonzero((bank != pad_id).any(dim=1)).flatten().cpu()
    order = filled[torch.randperm(len(filled), generator=torch.Generator().manual_seed(seed))]
    moved = bank.clone()
    moved[order.to(bank.device)] = bank[order.roll(1).to(bank.device)]
    return moved


def without(bank: Tensor, pairs: list[tuple[Question, Fact]], pad_id: int) -> Tensor:
    """The bank with every asked row empty."""
    bank = bank.clone()
    bank[[fact.row for _, fact in pairs if fact.row >= 0]] = pad_id
    return bank


def others_edited(reader: Reader, pairs: list[tuple[Question, Fact]], facts: list[Fact], seed: int) -> Tensor:
    """The bank with a thousand rows that nobody asks about, each with another's object."""
    asked, draw = {fact.row for _, fact in pairs}, random.Random(seed)
    others = [fact for fact in facts if fact.row not in asked]
    others = draw.sample(others, min(OTHERS, len(others)))
    bank, length = reader.memory.bank.clone(), reader.memory.bank.shape[1]
    for fact, other in zip(others, others[1:] + others[:1], strict=True):
        if ids := edited_row(fact, other.object, reader.tokenizer, length):
            bank[fact.row] = torch.tensor(ids)
    return bank


def edited_experiment(reader: Reader, pairs: list[tuple[Question, Fact]], seed: int) -> Experiment:
    """Every asked row states a wrong option; questions whose row cannot are left out."""
    length = reader.memory.bank.shape[1]
    bank, stated, asked = reader.memory.bank.clone(), {}, []
    for question, fact in pairs:
        draw = random.Random(f"{seed} {fact.row}")
        choice = counterfactual(question, fact, draw, reader.tokenizer, length) if fact.row >= 0 else None
        if choice is None or stated.setdefault(fact.row, option_object(choice)) != option_object(choice):
            continue
        bank[fact.row] = torch.tensor(edited_row(fact, option_object(choice), reader.tokenizer, length))
        asked.append(Asked(question, fact, choice))
    return Experiment(bank, asked)
