"""Placing facts in a bank by what they say, so that questions about facts nobody asked for in training find them too.

A bank row's number is a pair (i, j), and a product key scores i and j apart. Facts in arbitrary order make both halves
arbitrary: each fact's address must be learned on its own. Here i is a group of similar facts and j a kind of difference
from the group's mean, so an address follows from the words of the fact.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

KMEANS_ROUNDS = 8
KMEANS_SAMPLE = 2**17
CHUNK = 2**14


def place(vectors: Tensor, r: int, key_half: int, seed: int) -> tuple[Tensor, Tensor]:
    """A cell i·r + j for every fact, no two alike, and keys that score the cells.

    vectors: (n, d) with n ≤ r² and d ≥ key_half, what a question about the fact can know.  Returns: cells (n,), keys
    (2, r, key_half), rows of length 1: the mean of each group, and the centres of the differences from it.
    """
    generator = torch.Generator().manual_seed(seed)
    centred = vectors - vectors.mean(dim=0)
    short = centred @ _directions(centred, key_half, generator)
    groups = _split(centred, torch.arange(len(vectors)), r, generator)
    means = torch.stack([short[group].mean(dim=0) for group in groups])
    group_of = torch.empty(len(vectors), dtype=torch.int64)
    for i, group in enumerate(groups):
        group_of[group] = i
    rest = short - means[group_of]
    centres = _kmeans(rest, r, generator)
    cells = torch.empty(len(vectors), dtype=torch.int64)
    for i, group in enumerate(groups):  # within a group every fact gets a column of its own, at the least distance
        facts, columns = linear_sum_assignment(torch.cdist(rest[group], centres).numpy())
        cells[group[torch.from_numpy(facts)]] = i * r + torch.from_numpy(columns)
    return cells, torch.nn.functional.normalize(torch.stack([means, centres]), dim=-1)


def _directions(centred: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The first principal directions, (d, count), by subspace iteration."""
    basis = torch.randn(centred.shape[1], count, generator=generator)
    covariance = centred.T @ centred
    for _ in range(20):
        basis = torch.linalg.qr(covariance @ basis).Q
    return basis


def _split(centred: Tensor, rows: Tensor, parts: int, generator: torch.Generator) -> list[Tensor]:
    """`parts` groups of equal size up to one: halves along the direction of largest spread, again and again."""
    if parts == 1:
        return [rows]
    own = centred[rows] - centred[rows].mean(dim=0)
    order = rows[(own @ _directions(own, 1, generator)[:, 0]).argsort(stable=True)]
    left = parts // 2
    middle = (len(rows) * left + parts - 1) // parts
    return [
        *_split(centred, order[:middle], left, generator),
        *_split(centred, order[middle:], parts - left, generator),
    ]


def _kmeans(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres of Lloyd's algorithm on a sample, (count, d); a centre that nothing is near to stays where it was."""
    sample = vectors[torch.randperm(len(vectors), generator=generator)[:KMEANS_SAMPLE]]
    centres = sample[torch.randint(len(sample), (count,), generator=generator)]
    for _ in range(KMEANS_ROUNDS):
        nearest = torch.cat([torch.cdist(piece, centres).argmin(dim=1) for piece in sample.split(CHUNK)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        counts = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
