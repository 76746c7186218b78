"""Loaders and iterables that were not made by `run.loader`, under `run.batches`.

Law: nothing of the user's loader is changed. Its batches are counted; where it can seek by redrawing indices it does,
and where it can't, that is said.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler

from autoresume.data import batch_observer
from autoresume.data.resumable_loader import PassTurn
from autoresume.data.worker_seeds import private_worker_seed
from autoresume.errors import UsageError
from autoresume.state import rng
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState

log = logging.getLogger("autoresume")


class ForeignLoader:
    """Somebody else's loader or iterable, under `run.batches`: the position is counted, and found again.

    A map-style DataLoader is rebuilt around its own sampler: the sampler draws the epoch's indices
    again, from the generators as they were when the epoch began (its own included), and only indices are
    skipped. Any other iterable is skipped through, with a warning, since nobody but it can seek.
    """

    def __init__(
        self, loader: Iterable[Any], world_size: int, turn: Callable[[], str], before_first: Callable[[], None]
    ) -> None:
        # Whether somebody else still holds it tells whether it may be used again.
        self._held: Callable[[], Any] = weakref.ref(loader) if isinstance(loader, DataLoader) else lambda: loader
        self._batch_size = getattr(loader, "batch_size", None) or 1
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self.over = False
        self._turn = PassTurn(turn)
        self._at_begin: dict[str, Any] | None = None
        self._empty = False
        """The restored pass had come to its end: it gives nothing."""
        self._handed_out = 0
        self._before_first = before_first
        if (
            isinstance(loader, DataLoader)
            and loader.num_workers > 0
            and not isinstance(loader.dataset, IterableDataset)
        ):
            log.warning(
                "the workers of a DataLoader that was not made by run.loader draw random numbers that depend on "
                "their whole past: random augmentations differ after a resume in the middle of an epoch. Make it "
                "with run.loader(dataset, ...) to have them exact."
            )

    @property
    def loader(self) -> Any:
        """None when nobody holds it any more."""
        return self._held()

    def reseed(self, seed: int) -> None:
        """Its order is its own."""

    def start_next_epoch_if_over(self) -> None:
        if self.over or self._turn.left():
            self.epoch, self.position, self._handed_out = self.epoch + 1, 0, 0
            self.over, self._empty, self._at_begin = False, False, None

    def iterate(self) -> Iterator[Any]:
        self._turn.begin()
        if self._empty:
            self._before_first()
            self.over, self._empty = True, False
            return
        batches = self._begin()
        while True:
            self._before_first()
            try:
                batch = batch_observer.fetch(batches, note=True)
            except StopIteration:
                self.over = True
                return
            self._handed_out += 1
            yield batch

    def _begin(self) -> Iterator[Any]:
        """The epoch's batches from the position. Where that is in its middle, the generators were as they were at its
        beginning meanwhile, and are as they are now when this returns."""
        loader, skip, now = self.loader, self.position, rng.get_rng_state()
        again = self._at_begin is not None
        if self._at_begin is not None:
            rng.set_rng_state(self._at_begin["global"])
            _put_generators(loader, self._at_begin["own"])
        self._at_begin = {"global": rng.get_rng_state(), "own": _get_generators(loader)}
        source, rest = _skipping(loader, self.epoch, skip)
        batches = self._iterated(loader, source)
        for sampler in (getattr(source, "batch_sampler", None), getattr(source, "sampler", None)):
            if isinstance(sampler, _Skipped):
                sampler.skip()
        self._handed_out = skip
        if rest:
            log.warning(
                "skipping %d batches of a %s that can't seek; run.loader(dataset) goes there at once",
                rest,
                type(loader).__name__,
            )
            for done in range(rest):
                next(batches, None)
                if done and done % 1000 == 0:
                    log.info("skipped %d of %d batches", done, rest)
        batch_observer.forget()
        if again:
            rng.set_rng_state(now)
        return batches

    def _iterated(self, loader: Any, source: Iterable[Any]) -> Iterator[Any]:
        """The copy that skips has workers of its own: with a loader whose workers persist, it draws no seed either."""
        if isinstance(source, DataLoader) and source is not loader and loader.persistent_workers:
            with private_worker_seed(source, self.epoch, self.position):
                return iter(source)
        return iter(source)

    def commit(self) -> int:
        batches = self._handed_out - self.position
        self.position = self._handed_out
        return max(0, batches) * self._batch_size * self.world_size

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "foreign",
            "epoch": self.epoch,
            "position": self.position,
            "over": self.over or self._empty,
            "turn": self._turn.begun,
            "begin": self._at_begin,
            "now": _get_generators(self.loader),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "foreign":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        self.epoch, self.position, self._empty = int(state["epoch"]), int(state["position"]), bool(state["over"])
        self._handed_out = self.position
        self._at_begin = state["begin"] if self.position else None
        self._turn.load_state(state)
        _put_generators(self.loader, state["now"])

    def follow(self, state: dict[str, Any]) -> None:
        begun = bool(state["over"]) or int(state["position"]) > 0
        self.epoch = int(state["epoch"]) + begun  # its generators are new ones, as the script has made them

    def shut_down_workers(self) -> None:
        """Its workers are found among this process's children."""


def _own_generators(loader: Any, depth: int = 4) -> dict[str, Any]:
    """The generators that a loader, its samplers and a loader that it wraps have for themselves."""
    found: dict[str, Any] = {}
    for name, value in getattr(loader, "__dict__", {}).items():
        if type(value) in GENERATOR_TYPES:
            found[name] = value
        elif depth and isinstance(value, (DataLoader, Sampler)):
            inner = _own_generators(value, depth - 1)
            found.update({f"{name}.{key}": generator for key, generator in inner.items()})
    return found


def _get_generators(loader: Any) -> dict[str, Any]:
    return {name: GeneratorState(generator).state_dict() for name, generator in _own_generators(loader).items()}


def _put_generators(loader: Any, states: dict[str, Any]) -> None:
    for name, generator in _own_generators(loader).items():
        if name in states:
            GeneratorState(generator).load_state_dict(states[name])


class _Skipped:
    """A sampler without its first `count` items: indices are drawn, nothing is loaded.

    They are drawn when `skip` is called, since a sampler draws from the global generators.
    """

    def __init__(self, sampler: Any, count: int) -> None:
        self.sampler = sampler
        self.count = count
        self._left = count
        self._items: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        self._items, self._left = iter(self.sampler), self.count
        return self

    def skip(self) -> None:
        for _ in range(self._left):
            next(self._items, None)
        self._left = 0

    def __next__(self) -> Any:
        self.skip()
        return next(self._items)

    def __len__(self) -> int:
        return max(0, len(self.sampler) - self.count) if isinstance(self.sampler, Sized) else 0


def _skipping(loader: Iterable[Any], epoch: int, skip: int) -> tuple[Iterable[Any], int]:
    """(what to iterate, how many of its batches are still to be skipped)."""
    if isinstance(loader, DataLoader):
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(epoch)  # type: ignore[union-attr]
    if not skip:
        return loader, 0
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader, skip
    # A shallow copy: the user's loader stays whole for the next epoch. Its attributes are frozen
    # against assignment, for users' sake, so the copy's dictionary is filled directly.
    copy = DataLoader.__new__(type(loader))
    copy.__dict__.update(loader.__dict__)
    name = "batch_sampler" if loader.batch_sampler is not None else "sampler"
    copy.__dict__[name] = _Skipped(getattr(loader, name), skip)
    copy.__dict__["_iterator"] = None
    copy.__dict__["persistent_workers"] = False
    return copy, 0
