"""What a recorder of the training sees of its data: the batches of each step, and whose samples they are.

Law: off, it costs three calls for a batch. A batch counts for the step in which it is trained on: what a loop holds, or
what is skipped after a resume, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.utils.data.dataloader as torch_loader

Seen = tuple["list[int] | None", str]
"""Indices in the dataset, where they are known, and a digest of the batch."""


class BatchObserver:
    """`digest` makes a digest of a batch."""

    def __init__(self, digest: Callable[[Any], str]) -> None:
        self._digest = digest
        self._inside = 0
        self._held: dict[tuple[int, int, int], Seen] = {}
        self._seen: list[Seen] = []
        self.workers = 0
        """The most data workers that a loader of this process had."""

    def take(self) -> list[Seen]:
        """What was trained on since this was called last."""
        seen, self._seen = self._seen, []
        return seen

    def fetch(self, batches: Iterator[Any]) -> Any:
        self._inside += 1
        try:
            return next(batches)
        finally:
            self._inside -= 1

    def note(self, batch: Any) -> None:
        self._seen.append((None, self._digest(batch)))

    def hand_out(self, place: tuple[int, int, int], indices: list[int], batch: Any) -> None:
        self._held[place] = (indices, self._digest(batch))

    def consume(self, place: tuple[int, int, int]) -> None:
        if place in self._held:
            self._seen.append(self._held.pop(place))

    def forget(self) -> None:
        self._seen.clear()

    def install(self) -> None:
        """See the batches of loaders that the run knows nothing of, too."""
        original = torch_loader._BaseDataLoaderIter.__next__

        def following(iterator: Any) -> Any:
            self.workers = max(self.workers, iterator._num_workers)
            batch = original(iterator)
            if not self._inside:
                self.note(batch)
            return batch

        torch_loader._BaseDataLoaderIter.__next__ = following  # type: ignore[method-assign, assignment]


_watch: BatchObserver | None = None


def install_observer(watch: BatchObserver) -> None:
    global _watch
    _watch = watch
    watch.install()


def fetch(batches: Iterator[Any], note: bool = False) -> Any:
    """next(batches); `note`: it is trained on in this step."""
    if _watch is None:
        return next(batches)
    batch = _watch.fetch(batches)
    if note:
        _watch.note(batch)
    return batch


def hand_out(owner: object, epoch: int, position: int, indices: Callable[[], list[int]], batch: Any) -> None:
    """A batch that ends at that position of its owner's data, and is consumed later."""
    if _watch is not None:
        _watch.hand_out((id(owner), epoch, position), indices(), batch)


def consume(owner: object, epoch: int, position: int) -> None:
    if _watch is not None:
        _watch.consume((id(owner), epoch, position))


def forget() -> None:
    """What was fetched in this step was only skipped."""
    if _watch is not None:
        _watch.forget()
