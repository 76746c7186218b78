"""What a record of the training sees of its data: the batches of each step, and whose samples they are.

Law: off, it costs a call for a batch. A batch counts for the step in which it is trained on: what a loop holds, what an
evaluation reads, or what is passed over after a resume, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Seen = tuple["list[int] | None", str]
"""Indices in the dataset, where they are known, and a digest of the batch."""


_MOST_HELD = 4096


class BatchObserver:
    """`digest` makes a digest of a batch."""

    def __init__(self, digest: Callable[[Any], str]) -> None:
        self.digest = digest
        self._held: dict[tuple[int, int, int], Seen] = {}
        self._seen: list[Seen] = []
        self.workers = 0
        """The most data workers that a loader of this process had."""

    def take(self) -> list[Seen]:
        """What was trained on since this was called last."""
        seen, self._seen = self._seen, []
        return seen

    def trained(self, seen: Seen) -> None:
        self._seen.append(seen)

    def hand_out(self, place: tuple[int, int, int], seen: Seen) -> None:
        if len(self._held) > _MOST_HELD:
            self._held.pop(next(iter(self._held)))  # of an evaluation: nobody comes for it
        self._held[place] = seen

    def consume(self, place: tuple[int, int, int]) -> None:
        if place in self._held:
            self._seen.append(self._held.pop(place))

    def forget(self) -> None:
        self._seen.clear()


class NotedBatches:
    """The iterator of a loader that the run was told to leave alone: its batches count where they are fetched."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> NotedBatches:
        return self

    def __next__(self) -> Any:
        batch = next(self.batches)
        note(batch)
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)


_observer: BatchObserver | None = None


def install_observer(observer: BatchObserver) -> None:
    global _observer
    _observer = observer


def remove_observer(observer: BatchObserver) -> None:
    """Nothing is seen any more, unless another one was installed since."""
    global _observer
    if _observer is observer:
        _observer = None


def is_on() -> bool:
    return _observer is not None


def look(batch: Any) -> str | None:
    """A digest of a batch that is handed out, for `trained`; None where nobody observes."""
    return _observer.digest(batch) if _observer is not None else None


def trained(digest: str) -> None:
    if _observer is not None:
        _observer.trained((None, digest))


def note(batch: Any) -> None:
    """It is trained on in this step."""
    if _observer is not None:
        _observer.trained((None, _observer.digest(batch)))


def saw_workers(count: int) -> None:
    if _observer is not None:
        _observer.workers = max(_observer.workers, count)


def hand_out(owner: object, epoch: int, position: int, indices: Callable[[], list[int]], batch: Any) -> None:
    """A batch that ends at that position of its owner's data, and is consumed later."""
    if _observer is not None:
        _observer.hand_out((id(owner), epoch, position), (indices(), _observer.digest(batch)))


def consume(owner: object, epoch: int, position: int) -> None:
    if _observer is not None:
        _observer.consume((id(owner), epoch, position))


def forget() -> None:
    """What was fetched in this step was only passed over."""
    if _observer is not None:
        _observer.forget()
