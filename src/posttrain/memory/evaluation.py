"""Does the model read its memory? The same questions with the true, a shuffled, an empty and an edited bank.

Accuracy with the true bank alone cannot tell reading from memorising. With the edited bank, the right answer is the one
that the bank now states; with the shuffled and the empty one it is still the truth, so a reader falls to chance.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.console import Progress
from posttrain.data.encode import IGNORED, encode_rows
from posttrain.evaluation.comparison import mcnemar
from posttrain.evaluation.estimates import in_percent, wilson_interval
from posttrain.memory.bank.questions import OPTION, Question, option_object
from posttrain.memory.by_token.router import NONE
from posttrain.memory.experiments import Asked, Experiment
from posttrain.memory.inference import Begun, Reader
from posttrain.models.labelled_head import labelled_only, predicting, targets

PIECE = 256  # logits converted to float32 at once
HOT = 10  # times its equal share of all tokens


def run(
    reader: Reader, what: Experiment, batch_size: int, max_new_tokens: int, progress: Progress, counts: Counter[str]
) -> list[dict[str, Any]]:
    """A record of every question: its answer, how it was judged, and the rows that each layer read and looked at.

    counts: how many facts of the bank have each object
    """
    records = []
    with reader.reading(what.bank, what.rekeyed):
        for batch in batches(what.asked, batch_size):
            prompts = [reader.prompt_ids(asked.question.content) for asked in batch]
            begun = reader.begin(prompts)
            looked = look_ups(reader, len(batch)) if what.bank is not None else [{} for _ in batch]
            likeliest = most_likely(reader, [asked.question for asked in batch], begun)
            texts = reader.answer(prompts, max_new_tokens, begun)
            for asked, text, reading, choice in zip(batch, texts, looked, likeliest, strict=True):
                record = judged(asked, text, choice, counts)
                records.append(record | {"layers": reading, "reads": reads(reader, reading, record["answer"])})
                progress.advance()
    return records


def reads(reader: Reader, reading: dict[str, dict[str, Any]], answer: str) -> bool | None:
    """Whether the row that was selected, last if by several layers, ends with the answer; None where none was."""
    selected = list(reading.values())[-1]["selected"] if reading else NONE
    if selected == NONE:
        return None
    sentence = reader.tokenizer.decode(reader.memory.bank[selected], skip_special_tokens=True)
    return bool(answer) and sentence.rstrip(" .").endswith(answer.rstrip(" ."))


def batches(items: list[Asked], size: int) -> Iterator[list[Asked]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def judged(asked: Asked, text: str, likeliest: str | None, counts: Counter[str]) -> dict[str, Any]:
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
        "frequency": most_frequent(asked.question, counts) == asked.gold if asked.question.choices else None,
        "options": len(asked.question.choices),
    }


def most_frequent(question: Question, counts: Counter[str]) -> str:
    """The choice that most facts of the bank have as their object: what one can know without the fact."""
    return max(sorted(question.choices), key=lambda choice: counts[option_object(choice)])


def look_ups(reader: Reader, count: int) -> list[dict[str, dict[str, Any]]]:
    """What each layer selected and looked at where the answers begin, at the last tokens of prompts just run."""
    readings = reader.memory.readings.items()
    return [
        {
            str(layer): {"selected": int(r.selected[i, -1]), "candidates": r.candidates[i, -1].tolist()}
            for layer, r in readings
        }
        for i in range(count)
    ]


@torch.inference_mode()
def most_likely(reader: Reader, questions: list[Question], begun: Begun) -> list[str | None]:
    """The choice of each question with the largest probability as a whole answer, end token included."""
    times = max(len(question.choices) for question in questions)
    if not times:
        return [None] * len(questions)
    device = reader.model.device
    answers = [answer for question in questions for answer in answer_ids(reader, question, times)]
    ids = pad_sequence(answers, batch_first=True, padding_value=IGNORED).to(device)  # (B · times, T)
    first = begun.logits.repeat_interleave(times, dim=0)
    losses = F.cross_entropy(first, ids[:, 0], ignore_index=IGNORED, reduction="none")
    if ids.shape[1] > 1:
        cache, mask = copy.deepcopy(begun.cache), begun.batch["attention_mask"].repeat_interleave(times, dim=0)
        cache.batch_repeat_interleave(times)
        with reader.memory.repeated(times), labelled_only(reader.model, ids):
            logits = reader.model(
                input_ids=ids.clamp(min=0),
                attention_mask=torch.cat([mask, (ids != IGNORED).long()], dim=1),
                position_ids=mask.sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=device),
                past_key_values=cache,
                use_cache=True,
            ).logits
        pieces = zip(logits.split(PIECE), targets(ids).split(PIECE), strict=True)
        rest = torch.cat([F.cross_entropy(piece.float(), wanted, reduction="none") for piece, wanted in pieces])
        losses = losses.index_add(0, torch.nonzero(predicting(ids))[:, 0], rest)
    losses = losses.masked_fill(ids[:, 0] == IGNORED, float("inf")).view(len(questions), times)
    return [q.choices[int(row.argmin())] if q.choices else None for q, row in zip(questions, losses, strict=True)]


def answer_ids(reader: Reader, question: Question, times: int) -> list[Tensor]:
    """Token ids of a question's choices as answers, and a place without any for each that it has less than `times`."""
    rows = [question.as_row(choice) for choice in question.choices]
    ids, labels = encode_rows(rows, reader.tokenizer, reader.encoding) if rows else ([], [])
    answers = [
        torch.tensor([token for token, label in zip(*pair, strict=True) if label != IGNORED])
        for pair in zip(ids, labels, strict=True)
    ]
    return answers + [torch.tensor([IGNORED])] * (times - len(answers))


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy by each judgement with its Wilson interval, chance, and hit rates by layer."""
    summary: dict[str, Any] = {"n": len(records)}
    for name in ("startswith", "letter", "likelihood", "frequency", "reads"):
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


def same_answers(records: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Share of questions with the same answer under two banks, of those that were asked with both."""
    before = {record["id"]: record["answer"] for record in others}
    return rate([before[r["id"]] == r["answer"] for r in records if r["id"] in before])


def paired(records: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of the questions asked with both banks one alone answers right, and McNemar's exact p of that."""
    before = {record["id"]: record["startswith"] for record in others}
    both = [(r["startswith"], before[r["id"]]) for r in records if r["id"] in before]
    here, there = both.count((True, False)), both.count((False, True))
    return {"n": len(both), "here_alone": here, "there_alone": there, "p": mcnemar(here, there)}


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
        batch = reader.begin(prompts[start : start + batch_size]).batch
        for layer, reading in reader.memory.readings.items():
            read = reading.selected[batch["attention_mask"].bool()].cpu()
            counts[layer] += torch.bincount(read[read != NONE], minlength=len(bank))
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
    """One line a bank: the accuracies, chance, the rule that takes the most frequent choice, how often an answer is
    that of the selected row, and by layer how often the right row was selected and among the candidates.
    """

    def percent(found: dict[str, Any] | None) -> str:
        return "–" if found is None else in_percent(found["value"], found["low"], found["high"])

    def short(found: dict[str, Any] | float | None) -> str:
        return "–" if found is None else f"{found if isinstance(found, float) else found['value']:.1%}"

    def by_layer(found: dict[str, Any]) -> str:
        return ", ".join(f"{layer}: {short(value)}" for layer, value in found.items()) or "–"

    lines = [
        f"{'bank':<10} {'n':>6}  {'starts with':<22} {'letter':<22} {'likelihood':<22} {'chance':<7} {'frequent':<9} "
        f"{'as read':<8} {'hit rate':<22} candidates"
    ]
    for name, found in summaries.items():
        columns = " ".join(f"{percent(found[key]):<22}" for key in ("startswith", "letter", "likelihood"))
        lines.append(
            f"{name:<10} {found['n']:>6}  {columns} {short(found['chance_likelihood']):<7} "
            f"{short(found['frequency']):<9} {short(found['reads']):<8} {by_layer(found['hit_rate']):<22} "
            f"{by_layer(found['candidate_recall'])}"
        )
    return "\n".join(lines)
