"""TRL's sampler that repeats batches, in an order of the epoch alone, so that a resumed run finds it again."""

from collections.abc import Iterator

import torch
from trl.trainer.utils import RepeatSampler

from posttrain.console import say


class EpochRepeatSampler(RepeatSampler):
    """RepeatSampler whose order of an epoch is drawn from the seed and the epoch's number.

    TRL's goes on with one generator from epoch to epoch, so a run resumed in its second would see the first's order.
    Where the rows are fewer than a batch holds, of which TRL makes no batch at all, they fill it by turns: as often as
    each other but for one, and the epoch's number decides which are first.
    """

    epoch = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.num_rows = self.num_samples
        if 0 < self.num_rows < self.batch_size:
            self.num_samples = self.batch_size
            say(
                f"{self.num_rows} prompts are fewer than the {self.batch_size} of one batch: they are repeated by turns"
            )

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
        first = 0 if self.num_samples == self.num_rows else self.epoch * self.num_samples
        return ((first + index) % self.num_rows for index in super().__iter__())
