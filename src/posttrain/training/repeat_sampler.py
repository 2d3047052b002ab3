"""TRL's sampler that repeats batches, in an order of the epoch alone, so that a resumed run finds it again."""

from collections.abc import Iterator

import torch
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """RepeatSampler whose order of an epoch is drawn from the seed and the epoch's number.

    TRL's goes on with one generator from epoch to epoch, so a run resumed in its second would see the first's order.
    """

    epoch = 0

    @classmethod
    def like(cls, other: RepeatSampler) -> "EpochRepeatSampler":
        """The same repetition of the same rows."""
        return cls(
            other.data_source, other.mini_repeat_count, other.batch_size, other.repeat_count, other.shuffle, other.seed
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate's loader before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            draw = torch.Generator().manual_seed((self.seed or 0) * 1_000_003 + self.epoch)
            self.generator.manual_seed(int(torch.randint(2**31, (), generator=draw)))
        return super().__iter__()
