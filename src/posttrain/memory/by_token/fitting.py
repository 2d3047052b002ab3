"""Teach the gate of a token memory which row answers a question, from cached states: minutes, and no model runs.

First the router, by InfoNCE over rows drawn from the whole bank; then the comparison, over the router's candidates.
Each question is also seen without its row, so that the gate learns to take none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from posttrain.console import Progress, say
from posttrain.memory.by_token.memory import TokenMemory, question_mask, question_states
from posttrain.memory.by_token.router import NONE, SHARPNESS
from posttrain.memory.by_token.states import BATCH, lower_layers

ROUTER_BATCH, ROUTER_NEGATIVES, ROUTER_RATE = 128, 4096, 1e-3
BATCH_COMPARED, COMPARED, COMPARISON_RATE = 32, 32, 2e-3  # questions, candidates of each
NONE_WEIGHT = 0.25  # some questions have two rows that answer them: without one of them, the other is right
SCALARS = 10  # times that rate for the few numbers that are no matrices
HELD_OUT = 10  # of so many questions, one is only measured


@torch.inference_mode()
def states_of_prompts(model: PreTrainedModel, prompts: list[list[int]], pad_id: int, layer: int) -> Tensor:
    """What the frozen model says of prompts, bfloat16, (n, 2·D)."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    states = torch.zeros(len(prompts), 2 * model.config.hidden_size, dtype=torch.bfloat16)
    progress = Progress("question states", "questions", len(prompts))
    with lower_layers(model, layer) as found:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids, mask = padded([prompts[i] for i in chosen], pad_id)
            ids, mask = ids.to(model.device), mask.to(model.device)
            model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            starts = mask.sum(dim=1) - 1
            states[chosen] = question_states(found[0], question_mask(mask, starts), starts).bfloat16().cpu()
            progress.advance(len(chosen))
    progress.close()
    return states


def padded(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the right; (B, S) both."""
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def fit_gate(
    memory: TokenMemory, embedding: Tensor, prompts: list[list[int]], states: Tensor, rows: Tensor, steps: int,
    seed: int,
) -> None:  # fmt: skip
    """Fit router and comparison to questions whose rows are known, and print what they do on held-out ones.

    prompts: token ids of the questions    states: (n, 2·D)    rows: (n,)
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(rows), dtype=torch.bool)
    held_out[::HELD_OUT] = True
    fit_router(memory, states[~held_out], rows[~held_out], steps, generator)
    seen = [prompt for prompt, held in zip(prompts, held_out.tolist(), strict=True) if not held]
    fit_comparison(memory, embedding, seen, states[~held_out], rows[~held_out], steps, generator)
    unseen = [prompt for prompt, held in zip(prompts, held_out.tolist(), strict=True) if held]
    selected, candidates = chosen_rows(memory, embedding, unseen, states[held_out])
    wanted = rows[held_out]
    recall = (candidates == wanted[:, None]).any(dim=1).float().mean()
    hits = (selected == wanted).float().mean()
    without, _ = chosen_rows(memory, embedding, unseen, states[held_out], without=wanted)
    refused = (without == NONE).float().mean()
    say(
        f"gate, {len(wanted)} questions held out: right row among {candidates.shape[1]} candidates {recall:.1%}, "
        f"selected {hits:.1%}; none selected without that row {refused:.1%}"
    )


def fit_router(memory: TokenMemory, states: Tensor, rows: Tensor, steps: int, generator: torch.Generator) -> None:
    """InfoNCE: each question's row against those of the batch and rows at random.  states: (n, 2·D)    rows: (n,)"""
    router = memory.memory_gate.router
    filled = torch.nonzero((memory.bank != memory.config.pad_id).any(dim=1)).flatten()
    router.question_standard.set_from(states)
    router.row_standard.set_from(memory.states[filled])
    optimizer = torch.optim.AdamW(router.parameters(), ROUTER_RATE, weight_decay=0.1)
    for _ in range(steps):
        batch = torch.randint(len(rows), (ROUTER_BATCH,), generator=generator)
        drawn = filled[torch.randint(len(filled), (ROUTER_NEGATIVES,), generator=generator)]
        against = torch.cat([rows[batch], drawn])
        scores = router.questions(states[batch]) @ router.rows(memory.states[against]).T * SHARPNESS
        own = torch.arange(ROUTER_BATCH)
        again = against == rows[batch][:, None]  # the right row, drawn a second time, is no wrong one
        again[own, own] = False
        loss = F.cross_entropy(scores.masked_fill(again, float("-inf")), own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    memory.set_keys()


def fit_comparison(
    memory: TokenMemory, embedding: Tensor, prompts: list[list[int]], states: Tensor, rows: Tensor, steps: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Cross entropy of the right row among candidates of the router's, and of none where that row is taken out."""
    comparison = memory.memory_gate.comparison
    similarity, found = nearest_of(memory, states)
    matrices = [parameter for parameter in comparison.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in comparison.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices}, {"params": others, "lr": SCALARS * COMPARISON_RATE}]
    optimizer = torch.optim.AdamW(groups, COMPARISON_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        own_similarity = (memory.memory_gate.router.questions(states) * memory.keys[rows]).sum(dim=1)
    progress = Progress("comparison", "steps", steps)
    for _ in range(steps):
        batch = torch.randint(len(rows), (BATCH_COMPARED,), generator=generator)
        places = torch.randperm(found.shape[1], generator=generator)[: COMPARED - 1]
        candidates = torch.cat([rows[batch, None], found[batch][:, places]], dim=1)
        scores = torch.cat([own_similarity[batch, None], similarity[batch][:, places]], dim=1)
        scores[:, 1:] = scores[:, 1:].masked_fill(candidates[:, 1:] == rows[batch, None], float("-inf"))
        ids, mask = padded([prompts[i] for i in batch], memory.config.pad_id)
        mask = question_mask(mask, mask.sum(dim=1) - 1)
        logits = comparison(ids, mask, memory.bank[candidates], scores, embedding)
        right = F.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.int64))
        none = F.cross_entropy(logits[:, 1:], torch.full((len(batch),), logits.shape[1] - 2))
        optimizer.zero_grad()
        (right + NONE_WEIGHT * none).backward()
        optimizer.step()
        schedule.step()
        progress.advance()
    progress.close()


@torch.no_grad()
def nearest_of(memory: TokenMemory, states: Tensor) -> tuple[Tensor, Tensor]:
    """The router's cosines and candidates, (n, C) both, of all questions."""
    pieces = [memory.candidates(piece) for piece in states.split(256)]
    similarity, candidates = (torch.cat(column) for column in zip(*pieces, strict=True))
    return similarity, candidates


@torch.no_grad()
def chosen_rows(
    memory: TokenMemory, embedding: Tensor, prompts: list[list[int]], states: Tensor, without: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rows that the gate takes, (n,), and its candidates, (n, C).  without: (n,) rows that are not there"""
    similarity, candidates = nearest_of(memory, states)
    if without is not None:
        similarity = similarity.masked_fill(candidates == without[:, None], float("-inf"))
    selected = []
    for start in range(0, len(prompts), BATCH_COMPARED):
        piece = slice(start, start + BATCH_COMPARED)
        ids, mask = padded(prompts[piece], memory.config.pad_id)
        mask = question_mask(mask, mask.sum(dim=1) - 1)
        logits = memory.compare(ids, mask, candidates[piece], similarity[piece], embedding)
        selected.append(memory.choose(logits, candidates[piece]))
    return torch.cat(selected), candidates
