"""What a sampler gave in one pass over its loader, and how it is made to give the same once more.

Law: a pass that is begun anew draws what torch's own would, in the same order, and nothing else. One that goes on
draws all of its indices again, each from generators as they were when it was drawn, and hands out those that had
not been trained on; the generators of this process are as they were before. Nothing is loaded for what is passed over.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from autoresume.data import own_state
from autoresume.data.worker_rng import WorkerGenerators
from autoresume.state import rng

log = logging.getLogger("autoresume")

_MOST_DRAWS = 64
"""A sampler that draws more often than so in a pass would fill the checkpoint with states of generators."""
_LONG = 64
"""A pass without a boundary for so many batches is no training, for all that is known."""
_LOOKS = 3
"""Batches of a stream that are looked at."""
MOST_HELD = 8
"""Batches that a loop may hold, as far as random numbers that are drawn while they are read are kept for it."""


class Drawing:
    """One pass of a loader's sampler. `fetches_ahead`: whoever hands the batches out may hold some."""

    def __init__(self, loader: DataLoader[Any], fetches_ahead: bool) -> None:
        self.loader = weakref.ref(loader)
        self.is_stream = isinstance(loader.dataset, IterableDataset)
        self.drawn = 0
        self.exhausted = False
        self.seed: torch.Tensor | None = None
        """The generator that the workers' base seed was drawn from, as it was before."""
        self.keeps_held = not loader.num_workers
        """Keep the generators that the last batches were read with: the loop may hold those at a boundary."""
        self.always_keeps = self.keeps_held and fetches_ahead
        self.begun: list[dict[str, Any]] = []
        self.log: dict[int, dict[str, Any]] = {}
        self._held: dict[int, dict[str, Any]] = {}
        self._start = 0
        self._generator = loader.generator  # for the workers' seed it may be another one
        self._ready: deque[tuple[int, Any]] = deque()
        self._prepared: Iterator[Any] | None = None
        self.workers_begin: torch.Tensor | None = None
        """Where the workers' generators are to begin, in the order of their turns."""
        self.worker_generators: WorkerGenerators | None = None
        self._persists = loader.persistent_workers or not getattr(loader, "in_order", True)
        """The workers go on with other passes, or in no order."""
        self._lost = False
        self._draws_as_it_goes = False
        """From the process's generators."""
        self.stream_draws = False
        """The dataset of a stream draws from the process's generators while it is read."""
        self._before_reading: dict[str, str] = {}
        self._looks = _LOOKS if self.is_stream and not loader.num_workers else 0
        self._now: dict[str, Any] | None = None

    @property
    def too_often(self) -> bool:
        """The sampler draws from this process's generators all the time: that can't be kept."""
        return len(self.log) > _MOST_DRAWS

    def state(self, position: int) -> dict[str, Any]:
        """`position` is where the loop is: what was handed out before it, was trained on."""
        return {
            "drawn": self.drawn,
            "exhausted": self.exhausted,
            "seed": self.seed,
            "begun": self.begun,
            "log": self.log if not self.too_often else {},
            "held": {number: kept for number, kept in self._held.items() if number >= position},
            "now": self._own_generators(),
            "workers": self._workers(position - self._start),
        }

    def _workers(self, given: int) -> torch.Tensor | None:
        noted = self.worker_generators
        if noted is None or self._persists:
            return None
        state = noted.state(given)
        self._lost = state is None
        return state

    def problems(self) -> list[str]:
        """What is to be told of it."""
        found, noted = [], self.worker_generators
        if self.stream_draws:
            found.append(
                "the dataset draws random numbers of this process while it is read, which are others when it is read "
                "again up to its place, after a resume. Give it a generator of its own, or a state (and run.loader), "
                "or workers."
            )
        if self.too_often and self._draws_as_it_goes:
            found.append(
                "its sampler draws from the generators of this process all the time, between what training draws: that "
                "can't be repeated, and after a resume in this epoch the order is another one. Give the sampler a "
                "generator of its own."
            )
        if noted is not None and self._persists and bool(noted.drew[:, 0].any()):
            found.append(
                "its workers draw random numbers, and persist (or hand out batches in no order): after a resume in the "
                "middle of an epoch they draw others. Make the loader with persistent_workers=False, or with "
                "run.loader(dataset, ...)."
            )
        if self._lost:
            found.append(
                "where the random numbers of its workers stand is not known in this checkpoint: they hand out more "
                "batches ahead than was kept, or do not answer. After a resume from it they draw others."
            )
        if noted is not None and bool(noted.drew[:, 1].any()):
            found.append(
                "its dataset draws, in the workers, from a generator of its own, whose state there nobody has: after a "
                "resume in the middle of an epoch it begins anew. Draw from numpy's, torch's or python's own."
            )
        return found

    def go_on(self, sampler: Any, again: dict[str, Any]) -> None:
        """Draw again what was drawn in an earlier life, whose state `again` is."""
        now, items = rng.get_rng_state(), iter(())
        for generators in again["begun"]:
            self._put_generators(generators)
            items = iter(sampler)
        self.log = {int(number): generators for number, generators in again["log"].items()}
        for number in range(int(again["drawn"])):
            if number in self.log:
                self._put_generators(self.log[number])
            item = next(items, _END)
            if item is _END:
                break
            if number >= int(again["position"]):
                self._ready.append((number, item))
        if again["exhausted"]:
            next(items, None)
        own_state.put(self.loader(), again["now"])
        rng.set_rng_state(now)
        self.begun, self.drawn, self.exhausted = again["begun"], int(again["drawn"]), bool(again["exhausted"])
        self._held = {int(number): kept for number, kept in again["held"].items()}
        self.seed, self.workers_begin = again["seed"], again["workers"]
        if self.workers_begin is not None and len(self.workers_begin) != getattr(self.loader(), "num_workers", 0):
            self.workers_begin = None
            log.warning(
                "a loader has %d workers, and had %d when the checkpoint was written: what they draw at random in the "
                "rest of this epoch is other than it would have been",
                getattr(self.loader(), "num_workers", 0),
                len(again["workers"]),
            )
        self._start = int(again["position"])
        self._prepared = _Indices(self, items, watched=not is_pure(sampler))

    def take_over_stream(self, again: dict[str, Any]) -> None:
        """It is skipped through; a later life skips from the same beginning."""
        self.begun = list(again.get("begun", ()))

    # -- torch's side: it iterates the sampler --------------------------------------------------------

    def begin(self, sampler: Any) -> Iterator[Any]:
        """In place of iter(sampler), which torch calls once or twice when a pass begins."""
        if self._prepared is not None:
            return self._prepared
        if not (self.is_stream and self.begun):
            self.begun.append(self._generators())
        self.drawn, self.log = 0, {}
        return _Indices(self, iter(sampler), watched=not is_pure(sampler))

    def draw(self, items: Iterator[Any], watched: bool) -> Any:
        """The next item. Raises StopIteration."""
        self.settle()
        if self._ready:
            number, item = self._ready.popleft()
            if number in self._held:
                self._now = self._reading()
                self._read_with(self._held[number])
            return item
        looks = (self.drawn == 0 or watched) and not self.too_often
        before = self._generators() if looks else None
        try:
            item = next(items)
        except StopIteration:
            self.exhausted = True
            raise
        if before is not None and (self.drawn == 0 or not same(before, self._generators())):
            self.log[self.drawn] = before
            self._draws_as_it_goes |= self.drawn > 0 and not same(before["process"], rng.get_rng_state())
        if self.always_keeps or (self.keeps_held and self.drawn < _LONG):
            self._held[self.drawn] = self._reading()
            self._held.pop(self.drawn - MOST_HELD, None)
        self.drawn += 1
        return item

    def settle(self) -> None:
        """A batch that was held has been read as it was then: the generators go on as they stood."""
        if self._now is not None:
            self._read_with(self._now)
            self._now = None

    def looks_at_stream(self) -> bool:
        """Before a batch is read: whether `look_at_stream` is to be called behind it."""
        if not self._looks or not self.drawn:
            return False
        self._before_reading = rng.rng_digests()
        return True

    def look_at_stream(self) -> None:
        self._looks -= 1
        self.stream_draws = self.stream_draws or self._before_reading != rng.rng_digests()

    # -- generators -----------------------------------------------------------------------------------

    def _generators(self) -> dict[str, Any]:
        return {"process": rng.get_rng_state(), "own": self._own_generators()}

    def _own_generators(self) -> dict[str, Any]:
        loader = self.loader()
        if loader is None:
            return {}
        with replaced(loader, generator=self._generator):
            return own_state.generators(loader)

    def _reading(self) -> dict[str, Any]:
        """All that what is read of a dataset may depend on."""
        return {"process": rng.get_rng_state(), "dataset": own_state.of_dataset(self.loader())}

    def _read_with(self, state: dict[str, Any]) -> None:
        rng.set_rng_state(state["process"])
        own_state.put(self.loader(), state["dataset"])

    def _put_generators(self, generators: dict[str, Any]) -> None:
        rng.set_rng_state(generators["process"])
        own_state.put(self.loader(), generators["own"])


_END = object()


class _Indices:
    """What torch takes indices from."""

    def __init__(self, drawing: Drawing, items: Iterator[Any], watched: bool) -> None:
        self._drawing, self._items, self._watched = drawing, items, watched

    def __iter__(self) -> _Indices:
        return self

    def __next__(self) -> Any:
        return self._drawing.draw(self._items, self._watched)


def is_pure(sampler: Any) -> bool:
    """Whether it draws all it needs with its first item, or not from anybody's generators but its own."""
    kind = type(sampler)
    if kind is BatchSampler:
        return is_pure(sampler.sampler)
    if kind is RandomSampler:
        return sampler.generator is None or not sampler.replacement
    return kind in (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


@contextlib.contextmanager
def replaced(loader: DataLoader[Any], **attributes: Any) -> Iterator[None]:
    """The loader has other attributes in this block. They are frozen against assignment, for users' sake; its
    dictionary isn't."""
    kept = {name: loader.__dict__[name] for name in attributes}
    loader.__dict__.update(attributes)
    try:
        yield
    finally:
        loader.__dict__.update(kept)
