"""How prompts are cut into stretches, the pieces of work that processes share; no torch.

A stretch is completed by one process from its first prompt to its last, so its samples are the same bytes whichever
process that is. The cut knows nothing of the number of processes, therefore one and eight of them write one result.
"""

import itertools
import math
from collections.abc import Sequence

CUT = "2"  # the version of this file's rules; part of what decides a result's last bits
LONGEST = 8  # batches in a stretch at most: an interruption costs no more
MOST = 8  # stretches of few prompts; of many there is a multiple of it, so that 2, 4 and 8 processes have equal shares


def number_of_stretches(prompts: int, batch_size: int) -> int:
    """Into how many stretches so many prompts are cut.

    Every stretch ends with slots that empty one after another, and the longer it is, the less that weighs: two of them
    are of a batch or more each, four of two batches, eight of four.
    """
    if prompts > MOST * LONGEST * batch_size:
        return MOST * math.ceil(prompts / (MOST * LONGEST * batch_size))
    number = 1
    while number < MOST and (2 * number) ** 2 * batch_size <= 2 * prompts:
        number *= 2
    return number


def cut(lengths: Sequence[int], batch_size: int, together: int = 1) -> list[list[int]]:
    """Places of prompts of so many tokens in stretches of like size, the longest first.

    So memory runs out at once or never. `together` prompts that follow one another are of one question, and stay in one
    stretch.
    """
    firsts = sorted(range(0, len(lengths), together), key=lambda place: (-lengths[place], place))
    number = min(number_of_stretches(len(lengths), batch_size), len(firsts))
    ends = [len(firsts) * part // max(1, number) for part in range(number + 1)]
    return [
        [place for first in firsts[start:end] for place in range(first, first + together)]
        for start, end in itertools.pairwise(ends)
    ]
