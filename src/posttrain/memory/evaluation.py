"""Does the model read its memory? The same questions with the true, a shuffled, an empty and an edited bank.

Accuracy with the true bank alone cannot tell reading from memorising. With the edited bank, the right answer is the one
that the bank now states; with the shuffled and the empty one it is still the truth, so a reader falls to chance.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.console import Progress
from posttrain.data.encode import IGNORED, encode_rows
from posttrain.evaluation.estimates import in_percent, wilson_interval
from posttrain.memory.bank.questions import OPTION, Fact, Question, option_object
from posttrain.memory.data import counterfactual, edited_row
from posttrain.memory.inference import Reader

BANKS = ("true", "shuffled", "empty", "edited", "no_memory")
HOT = 10  # times its equal share of all tokens


@dataclass(frozen=True)
class Asked:
    """A question with its fact and the answer that is right under the bank it is asked with."""

    question: Question
    fact: Fact
    gold: str


@dataclass(frozen=True)
class Experiment:
    """One bank, or None for the frozen model alone, and what is asked with it."""

    bank: Tensor | None
    asked: list[Asked]


def experiment(name: str, reader: Reader, pairs: list[tuple[Question, Fact]], seed: int) -> Experiment:
    """The bank of this name, and the questions with what is right under it."""
    true = reader.memory.bank
    asked = [Asked(question, fact, question.answer) for question, fact in pairs]
    if name == "edited":
        return edited_experiment(reader, pairs, seed)
    if name == "shuffled":
        return Experiment(shuffled(true, reader.description["config"].pad_id, seed), asked)
    if name == "empty":
        return Experiment(torch.full_like(true, reader.description["config"].pad_id), asked)
    return Experiment(true if name == "true" else None, asked)


def shuffled(bank: Tensor, pad_id: int, seed: int) -> Tensor:
    """The bank with the contents of its filled rows moved in one circle, in random order: none stays where it was."""
    filled = torch.nonzero((bank != pad_id).any(dim=1)).flatten().cpu()
    order = filled[torch.randperm(len(filled), generator=torch.Generator().manual_seed(seed))]
    moved = bank.clone()
    moved[order.to(bank.device)] = bank[order.roll(1).to(bank.device)]
    return moved


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


def run(
    reader: Reader, what: Experiment, batch_size: int, max_new_tokens: int, progress: Progress
) -> list[dict[str, Any]]:
    """A record of every question: its answer, how it was judged, and the rows that each layer read and looked at."""
    records = []
    with reader.memory.disabled() if what.bank is None else reader.memory.with_bank(what.bank):
        for batch in batches(what.asked, batch_size):
            prompts = [reader.prompt_ids(asked.question.content) for asked in batch]
            texts = reader.answer(prompts, max_new_tokens)
            looked = look_ups(reader, prompts) if what.bank is not None else [{} for _ in batch]
            for asked, text, reading in zip(batch, texts, looked, strict=True):
                likeliest = most_likely(reader, asked.question) if asked.question.choices else None
                records.append(judged(asked, text, likeliest) | {"layers": reading})
                progress.advance()
    return records


def batches(items: list[Asked], size: int) -> Iterator[list[Asked]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def judged(asked: Asked, text: str, likeliest: str | None) -> dict[str, Any]:
    """The three judgements of an answer; null where a question has no letters or no options."""
    has_letter = OPTION.fullmatch(asked.gold) is not None
    text = text.rpartition("</think>")[2].strip()  # Qwen3's template puts an empty thought before every answer
    return {
        "id": asked.question.id,
        "question": asked.question.content,
        "gold": asked.gold,
        "answer": text,
        "row": asked.fact.row,
        "startswith": text.startswith(asked.gold.strip()),
        "letter": text[:1] == asked.gold[:1] if has_letter else None,
        "likelihood": None if likeliest is None else likeliest == asked.gold,
        "options": len(asked.question.choices),
    }


@torch.inference_mode()
def look_ups(reader: Reader, prompts: list[list[int]]) -> list[dict[str, dict[str, Any]]]:
    """What each layer selects and looks at where the answer begins, at the last token of every prompt."""
    reader.model(**reader.left_padded(prompts), use_cache=False, logits_to_keep=1)
    readings = reader.memory.readings.items()
    return [
        {
            str(layer): {"selected": int(r.selected[i, -1]), "candidates": r.candidates[i, -1].tolist()}
            for layer, r in readings
        }
        for i in range(len(prompts))
    ]


@torch.inference_mode()
def most_likely(reader: Reader, question: Question) -> str:
    """The choice with the largest probability as a whole answer, end token included."""
    rows = [question.as_row(choice) for choice in question.choices]
    ids, labels = encode_rows(rows, reader.tokenizer, reader.encoding)
    width = max(map(len, ids))
    pad = reader.tokenizer.pad_token_id
    padded = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=reader.model.device)
    targets = torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels], device=reader.model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=reader.model.device)
    logits = reader.model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), targets[:, 1:], ignore_index=IGNORED, reduction="none")
    return question.choices[int(losses.sum(dim=1).argmin())]


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy by each judgement with its Wilson interval, chance, and hit rates by layer."""
    summary: dict[str, Any] = {"n": len(records)}
    for name in ("startswith", "letter", "likelihood"):
        verdicts = [record[name] for record in records if record[name] is not None]
        summary[name] = rate(verdicts)
    options = [1 / record["options"] for record in records if record["options"]]
    summary["chance_likelihood"] = round(sum(options) / len(options), 4) if options else None
    known = [record for record in records if record["row"] >= 0 and record["layers"]]
    layers = known[0]["layers"] if known else []
    summary["hit_rate"] = {
        layer: rate([record["layers"][layer]["selected"] == record["row"] for record in known]) for layer in layers
    }
    summary["candidate_recall"] = {
        layer: rate([record["row"] in record["layers"][layer]["candidates"] for record in known]) for layer in layers
    }
    return summary


def rate(verdicts: list[bool]) -> dict[str, Any] | None:
    """Share of true verdicts with its 95 % interval; None of none."""
    if not verdicts:
        return None
    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return {"value": round(sum(verdicts) / len(verdicts), 4), "low": round(low, 4), "high": round(high, 4)}


@torch.inference_mode()
def usage(reader: Reader, prompts: list[list[int]], batch_size: int) -> dict[str, dict[str, Any]]:
    """How the bank's filled rows are used, by layer, over all tokens of the prompts.

    coverage_rate: share of rows read at least once    dead: rows never read    hot: rows read more than ten times their
    equal share    selection_entropy: in nats; equal use of all rows would be `uniform_entropy`
    """
    bank = reader.memory.bank
    filled = (bank != reader.description["config"].pad_id).any(dim=1).cpu()
    counts = {layer: torch.zeros(len(bank), dtype=torch.int64) for layer in reader.memory.config.layers}
    for start in range(0, len(prompts), batch_size):
        batch = reader.left_padded(prompts[start : start + batch_size])
        reader.model(**batch, use_cache=False, logits_to_keep=1)
        for layer, reading in reader.memory.readings.items():
            read = reading.selected[batch["attention_mask"].bool()].cpu()
            counts[layer] += torch.bincount(read, minlength=len(bank))
    return {str(layer): _usage(count[filled], int(count[~filled].sum())) for layer, count in counts.items()}


def _usage(counts: Tensor, of_padding: int) -> dict[str, Any]:
    total, rows = int(counts.sum()), len(counts)
    shares = counts[counts > 0] / max(1, total)
    return {
        "tokens": total + of_padding,
        "tokens_on_empty_rows": of_padding,
        "coverage_rate": round(float((counts > 0).float().mean()), 4),
        "dead": int((counts == 0).sum()),
        "hot": int((counts > HOT * total / rows).sum()),
        "selection_entropy": round(float(-(shares * shares.log()).sum()), 4),
        "uniform_entropy": round(math.log(rows), 4),
    }


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """One line a bank: the three accuracies, chance, and the hit rate of each layer."""

    def percent(found: dict[str, Any] | None) -> str:
        return "–" if found is None else in_percent(found["value"], found["low"], found["high"])

    lines = [f"{'bank':<10} {'n':>6}  {'starts with':<22} {'letter':<22} {'likelihood':<22} {'chance':<7} hit rate"]
    for name, found in summaries.items():
        hits = ", ".join(f"{layer}: {value['value']:.1%}" for layer, value in found["hit_rate"].items()) or "–"
        chance = "–" if found["chance_likelihood"] is None else f"{found['chance_likelihood']:.1%}"
        columns = " ".join(f"{percent(found[key]):<22}" for key in ("startswith", "letter", "likelihood"))
        lines.append(f"{name:<10} {found['n']:>6}  {columns} {chance:<7} {hits}")
    return "\n".join(lines)
