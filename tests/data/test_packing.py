"""Packing: rows stay whole, and few tokens are lost."""

import itertools

import numpy as np

from posttrain.data.encode import with_labels
from posttrain.data.packing import pack
from posttrain.data.token_files import Ids


def test_rows_are_packed_whole_and_among_all_of_them():
    lengths = np.sort(np.random.default_rng(0).integers(1, 101, 3000))[::-1]  # TRL's first thousand do not fit together
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = Ids(np.array([f"{n:04x}" for n in range(3000)]), np.repeat(np.arange(3000), lengths), offsets, lengths * 0)
    packed = pack(with_labels(ids), 100)
    assert all(sum(found) <= 100 for found in packed["seq_lengths"])
    found = [(n, sum(1 for _ in run)) for row in packed["input_ids"] for n, run in itertools.groupby(row)]
    assert sorted(found) == list(enumerate(lengths.tolist()))
    assert lengths.sum() / (len(packed) * 100) > 0.97
