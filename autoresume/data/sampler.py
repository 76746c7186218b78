"""The order in which samples are seen: one global order for each epoch, whatever the number of ranks.

Law: the order of an epoch is a function of (seed, epoch, number of samples) alone. A global batch is
the next `batch_size * world_size` samples of it, and a rank takes its slice of each. The position is
the number of samples that all ranks together have consumed, so that it means the same for any world
size, and going to it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import torch

from autoresume.state.rng import mix_seed


class Sample(NamedTuple):
    """What the sampler hands to the dataset: where in the epoch it is, and which item."""

    epoch: int
    position: int
    item: int


class GlobalOrder:
    """The batches of one rank. Yields lists of `Sample`; `len` is the number of batches of a whole epoch.

    In the last batch of an epoch, what is left over is dealt out evenly; where it does not suffice for
    all ranks, samples from the epoch's beginning fill it up (`drop_last` leaves it out instead), so
    that every rank always has the same number of batches and of samples in each.
    """

    def __init__(
        self, dataset: Sized, batch_size: int, rank: int, world_size: int, shuffle: bool, drop_last: bool, seed: int
    ) -> None:
        self.samples = len(dataset)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.begin = 0

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def epoch_samples(self) -> int:
        """Positions of an epoch: up to here an epoch goes."""
        return self.samples - self.samples % self.global_batch if self.drop_last else self.samples

    def __len__(self) -> int:
        return (self.epoch_samples + self.global_batch - 1) // self.global_batch

    def seek(self, epoch: int, position: int) -> None:
        """The next iteration begins at `position` (global samples consumed) of `epoch`."""
        self.epoch, self.begin = epoch, position

    def after(self, position: int) -> int:
        """The position after the batch that begins at `position`."""
        return min(position + self.global_batch, self.samples)

    def over(self, position: int) -> bool:
        """Whether no batch begins at `position`. After another number of ranks it need not be a multiple of ours."""
        return position + (self.global_batch if self.drop_last else 1) > self.samples

    def order(self, epoch: int) -> torch.Tensor:
        """Dataset indices of a whole epoch, shape (samples,), int64."""
        if not self.shuffle:
            return torch.arange(self.samples)
        generator = torch.Generator()
        generator.manual_seed(mix_seed(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)

    def indices(self, epoch: int, position: int) -> list[int]:
        """Dataset indices of this rank's batch that begins at `position`."""
        return [sample.item for sample in next(self._batches(epoch, position), [])]

    def __iter__(self) -> Iterator[list[Sample]]:
        return self._batches(self.epoch, self.begin)  # now, not at the first batch: somebody else may seek meanwhile

    def _batches(self, epoch: int, position: int) -> Iterator[list[Sample]]:
        order = self.order(epoch)
        while not self.over(position):
            end = self.after(position)
            each = -(-(end - position) // self.world_size)
            first = position + self.rank * each
            places = [place if place < end else (place - end) % self.samples for place in range(first, first + each)]
            yield [Sample(epoch, place, item) for place, item in zip(places, order[places].tolist())]
            position = end
