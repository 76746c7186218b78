"""Data loaders whose position is part of the run.

Law: the position is what the loop consumed, never what workers fetched ahead. Random numbers drawn
for a sample in a worker depend on (seed, epoch, place in the epoch) alone, not on the worker or its
past. Making an iterator draws nothing from the global generators. An iterator that is dropped before
a step boundary leaves no trace.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autoresume.errors import UsageError
from autoresume.training import rng
from autoresume.training.sampler import GlobalOrder, Sample

log = logging.getLogger("autoresume")

IGNORED_IN_WORKERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Positioned(Protocol):
    """What `Run` needs of a loader.

    A pass that came to its end moves the position to the next epoch only when the next pass begins: a
    checkpoint in between belongs to the epoch that was trained.
    """

    epoch: int

    def reseed(self, seed: int) -> None: ...

    def advance(self) -> None:
        """Before a pass of `run.batches`: go to the next epoch if the last pass came to its end."""

    def drive(self) -> Iterator[Any]:
        """The pass of `run.batches`, from the position."""

    def commit(self) -> int:
        """A step boundary: what was handed out is consumed. Returns the samples consumed since the last one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def end(self) -> None:
        """Ask the workers to end. Nothing is iterated afterwards."""


class _WorkerInit:
    """Runs first in each worker: our signals are not for it. It ends when its queue or its parent does."""

    def __init__(self, chained: Callable[[int], None] | None) -> None:
        self.chained = chained

    def __call__(self, worker: int) -> None:
        for number in IGNORED_IN_WORKERS:
            signal.signal(number, signal.SIG_IGN)
        if self.chained is not None:
            self.chained(worker)


class _SeededDataset(Dataset[Any]):
    """The user's dataset; in a worker, each sample is drawn with generators seeded for its place."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._get_items

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> Any:
        self._seed(sample)
        return self.dataset[sample.item]

    def _get_items(self, samples: list[Sample]) -> Any:
        self._seed(samples[0])
        return self.dataset.__getitems__([sample.item for sample in samples])

    def _seed(self, sample: Sample) -> None:
        if torch.utils.data.get_worker_info() is None:
            return  # in the rank itself the global generators go on, and are part of the run's state
        value = rng.mix(self.seed, sample.epoch, sample.position)
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)


class RunLoader:
    """`run.loader(...)`: torch's DataLoader over a map-style dataset, with a position.

    `run.batches` iterates from the position. Once it has, iterating the loader directly is a look at the
    current epoch from its beginning, which moves nothing. In a loop of one's own, which never uses
    `run.batches`, iterating begins at the position; iterators that are dropped before a step boundary, or
    come to their end without one (an evaluation), move nothing either. `fetched_ahead` is how many
    batches the loop holds at a boundary without having trained on them.
    """

    def __init__(
        self,
        dataset: Any,
        order: GlobalOrder,
        seed: int,
        fetched_ahead: int,
        before_first: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.epoch = 0
        self.position = 0
        self.fetched_ahead = fetched_ahead
        self.driven = False
        self._over = False
        self._before_first = before_first
        self._active: weakref.ref[_RunIterator] | None = None
        self._ended: _RunIterator | None = None
        self._ahead_rng: list[Any] = []
        """The generators as they were when each batch that is held at the boundary was fetched."""
        self._iterators: weakref.WeakSet[_RunIterator] = weakref.WeakSet()
        self._generator = torch.Generator()  # a private one: iter() draws the workers' base seed from it
        self._generator.manual_seed(seed)
        options = dict(options)
        if options.get("num_workers", 0) > 0:
            options["worker_init_fn"] = _WorkerInit(options.get("worker_init_fn"))
        self._samples = _SeededDataset(dataset, seed)
        self.loader: DataLoader[Any] = DataLoader(
            self._samples, batch_sampler=order, generator=self._generator, **options
        )

    def reseed(self, seed: int) -> None:
        """Take the run's seed, once that is known; nothing may have been iterated for training yet."""
        self.order.seed = seed
        self._samples.seed = seed
        self._generator.manual_seed(seed)

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    def __len__(self) -> int:
        """Batches of a whole epoch, for each rank."""
        return len(self.order)

    def advance(self) -> None:
        if self._over:
            self.epoch, self.position = self.epoch + 1, 0
            self._over, self._active, self._ended = False, None, None

    def drive(self) -> Iterator[Any]:
        self.driven = True
        return self._iterator(self.position, tracked=True)

    def __iter__(self) -> Iterator[Any]:
        if self.driven:
            return self._iterator(0, tracked=False)
        self.advance()
        return self._iterator(self.position, tracked=True)

    def _iterator(self, position: int, tracked: bool) -> _RunIterator:
        made = _RunIterator(self, self.epoch, position, tracked)
        self._iterators.add(made)
        return made

    def commit(self) -> int:
        # A loop holds its iterator; one that was dropped (a look, an evaluation that stopped early) is gone.
        active = self._active() if self._active is not None else None
        active = active or self._ended  # a prefetcher drops its iterator at its end, and still holds a batch
        if active is None:
            return 0
        epoch, position = active.consumed(self.fetched_ahead)
        self._ahead_rng = active.held_rng()
        moved = (epoch - self.epoch) * self.order.epoch_samples + position - self.position
        self.epoch, self.position = epoch, position
        return max(0, moved)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "map",
            "epoch": self.epoch,
            "position": self.position,
            "samples": self.order.samples,
            "driven": self.driven,
            "ahead": self._ahead_rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "map":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        if state["samples"] != self.order.samples:
            log.warning(
                "the dataset has %d samples, and had %d when the checkpoint was written: the order of the rest of "
                "the epoch is another one",
                self.order.samples,
                state["samples"],
            )
        self._active, self._ended, self._over = None, None, False
        self.epoch, self.position, self.driven = int(state["epoch"]), int(state["position"]), bool(state["driven"])
        self._ahead_rng = list(state["ahead"])

    def end(self) -> None:
        self.loader._iterator = None
        for iterator in list(self._iterators):
            iterator.batches = iter(())  # torch shuts the workers down when it loses its iterator


class _RunIterator:
    """One pass from a position to the end of its epoch. Only a tracked one can move its owner's position."""

    def __init__(self, owner: RunLoader, epoch: int, position: int, tracked: bool) -> None:
        self.owner = owner
        self.epoch = epoch
        self.tracked = tracked
        # Where each batch handed out ended, back to as many as may have been fetched ahead.
        self.ends = [position]
        self.held = 0
        """Batches handed out and not consumed, as of the last boundary."""
        self.unseen = 0
        """Batches handed out since then."""
        self.exhausted = False
        # Without workers a batch is drawn with the rank's own generators: those of held batches are kept.
        self._keeps_rng = tracked and owner.fetched_ahead > 0 and not owner.loader.num_workers
        self._drawn_with: list[Any] = []
        self._again = list(owner._ahead_rng) if tracked else []
        owner._ahead_rng = owner._ahead_rng if not tracked else []
        self.stepped = False
        """A step boundary came while this was iterated: it is the loop's, no evaluation and no look."""
        owner.order.seek(epoch, position)
        self.batches: Iterator[Any] = iter(owner.loader)

    def __iter__(self) -> _RunIterator:
        return self

    def __next__(self) -> Any:
        if self.tracked:
            self.owner._before_first()
        now = None
        if self._again:
            now = rng.get()  # the batch that was held at the checkpoint is drawn as it was then
            rng.put(self._again.pop(0))
        before = rng.get() if self._keeps_rng else None
        try:
            batch = next(self.batches)
        except StopIteration:
            self._finish()
            raise
        finally:
            if now is not None:
                rng.put(now)
        if before is not None:
            self._drawn_with = [*self._drawn_with[-self.owner.fetched_ahead :], before]
        self.unseen += 1
        if self.tracked:
            self.owner._active = weakref.ref(self)
        self.ends = [*self.ends[-self.owner.fetched_ahead - 1 :], self.owner.order.after(self.ends[-1])]
        return batch

    def held_rng(self) -> list[Any]:
        """The generators' states before each fetch of a batch that is held now, oldest first."""
        return self._drawn_with[-self.held :] if self._keeps_rng and self.held else []

    def consumed(self, ahead: int) -> tuple[int, int]:
        self.stepped = True
        handed_out, self.unseen = self.held + self.unseen, 0
        # At the end nothing more is fetched, so that one batch less is held at each boundary.
        self.held = max(0, handed_out - 1) if self.exhausted else min(ahead, handed_out)
        return self.epoch, self.ends[-1 - self.held]

    def _finish(self) -> None:
        owner = self.owner
        nothing_left = owner.epoch == self.epoch and owner.order.over(owner.position)
        if self.tracked and (self.stepped or nothing_left or owner.driven or owner.fetched_ahead):
            owner._over, owner._ended = True, self
        elif owner._active is not None and owner._active() is self:
            owner._active = None  # an evaluation, from end to end between two boundaries, moves nothing
        self.exhausted = True


class StatefulRunLoader:
    """`run.loader(...)` over an iterable or stateful dataset: torchdata's StatefulDataLoader keeps the position."""

    def __init__(
        self, dataset: Any, batch_size: int, samples_per_batch: int, before_first: Callable[[], None], options: Any
    ) -> None:
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError as error:
            raise UsageError(
                "an iterable dataset needs torchdata to keep its position: pip install 'autoresume-hpc[stateful]'"
            ) from error
        options = dict(options)
        if options.get("num_workers", 0) > 0:
            options["worker_init_fn"] = _WorkerInit(options.get("worker_init_fn"))
        self.loader = StatefulDataLoader(dataset, batch_size=batch_size, generator=torch.Generator(), **options)
        self.batch_size = batch_size
        self.epoch = 0
        self._samples_per_batch = samples_per_batch
        self._before_first = before_first
        self._restored: dict[str, Any] | None = None
        self._empty = False
        """The restored pass had come to its end: the next one gives nothing."""
        self._over = False
        self._unread = 0
        self._between = True
        self.driven = False

    def reseed(self, seed: int) -> None:
        """An iterable dataset brings its own order."""

    def advance(self) -> None:
        if self._over:
            self.epoch, self._over, self._restored, self._between = self.epoch + 1, False, None, True

    def drive(self) -> Iterator[Any]:
        self.driven = True
        return self._pass()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader) if self.driven else self._pass()

    def _pass(self) -> Iterator[Any]:
        self.advance()
        if self._empty:
            self._empty, self._over = False, True
            self._before_first()
            return
        if self._restored is not None and self._between:
            self.loader.load_state_dict(self._restored)  # here: a look at the loader would take it away
        batches = iter(self.loader)
        while True:
            self._before_first()
            try:
                batch = next(batches)
            except StopIteration:
                self._over = True
                return
            self._unread += 1
            self._between = False
            yield batch

    def commit(self) -> int:
        consumed, self._unread = self._unread * self._samples_per_batch, 0
        return consumed

    def state_dict(self) -> dict[str, Any]:
        state = self._restored if self._between or self._over else self.loader.state_dict()
        return {
            "kind": "stateful",
            "epoch": self.epoch,
            "state": state,
            "over": self._over or self._empty,
            "driven": self.driven,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "stateful":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        self.epoch, self._restored, self._empty = int(state["epoch"]), state["state"], bool(state["over"])
        self.driven = bool(state["driven"])

    def end(self) -> None:
        """Its workers are found among this process's children."""


class ForeignLoader:
    """Somebody else's loader or iterable, under `run.batches`: the position is counted, and found again.

    A map-style DataLoader is rebuilt around its own sampler: the sampler draws the epoch's indices
    again, from the generators as they were when the epoch began (its own included), and only indices are
    skipped. Any other iterable is skipped through, with a warning, since nobody but it can seek.
    """

    def __init__(self, loader: Iterable[Any], world_size: int, before_first: Callable[[], None]) -> None:
        self.loader = loader
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self._over = False
        self._at_begin: dict[str, Any] | None = None
        self._handed_out = 0
        self._before_first = before_first
        if isinstance(loader, DataLoader) and loader.num_workers > 0:
            if not isinstance(loader.worker_init_fn, _WorkerInit):
                loader.worker_init_fn = _WorkerInit(loader.worker_init_fn)
            if not isinstance(loader.dataset, IterableDataset):
                log.warning(
                    "the workers of a DataLoader that was not made by run.loader draw random numbers that depend on "
                    "their whole past: random augmentations differ after a resume in the middle of an epoch. Make it "
                    "with run.loader(dataset, ...) to have them exact."
                )

    def reseed(self, seed: int) -> None:
        """Its order is its own."""

    def advance(self) -> None:
        if self._over:
            self.epoch, self.position, self._handed_out = self.epoch + 1, 0, 0
            self._over, self._at_begin = False, None

    def drive(self) -> Iterator[Any]:
        skip = self.position
        if self._at_begin is not None:
            rng.put(self._at_begin["global"])
            _put_generators(self.loader, self._at_begin["own"])
        self._at_begin = {"global": rng.get(), "own": _get_generators(self.loader)}
        source, rest = _skipping(self.loader, self.epoch, skip)
        batches = self._iterated(source)
        for sampler in (getattr(source, "batch_sampler", None), getattr(source, "sampler", None)):
            if isinstance(sampler, _Skipped):
                sampler.skip()
        self._handed_out = skip
        if rest:
            log.warning(
                "skipping %d batches of a %s that can't seek; run.loader(dataset) goes there at once",
                rest,
                type(self.loader).__name__,
            )
            for done in range(rest):
                next(batches, None)
                if done and done % 1000 == 0:
                    log.info("skipped %d of %d batches", done, rest)
        while True:
            self._before_first()
            try:
                batch = next(batches)
            except StopIteration:
                self._over = True
                return
            self._handed_out += 1
            yield batch

    def _iterated(self, source: Iterable[Any]) -> Iterator[Any]:
        """A DataLoader with persistent workers draws their seed at the first iter() of a process: in a later epoch
        of the run it would have drawn none, so that a resumed process may not draw one either."""
        if (
            not isinstance(source, DataLoader)
            or not getattr(self.loader, "persistent_workers", False)
            or self.epoch == 0
            or source._iterator is not None
        ):
            return iter(source)
        kept = source.__dict__["generator"]
        source.__dict__["generator"] = torch.Generator()  # the sampler has its own, or the global one
        try:
            return iter(source)
        finally:
            source.__dict__["generator"] = kept

    def commit(self) -> int:
        batches = self._handed_out - self.position
        self.position = self._handed_out
        return max(0, batches) * (getattr(self.loader, "batch_size", None) or 1) * self.world_size

    def state_dict(self) -> dict[str, Any]:
        now = _get_generators(self.loader)
        return {"kind": "foreign", "epoch": self.epoch, "position": self.position, "begin": self._at_begin, "now": now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "foreign":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._at_begin = state["begin"] if self.position else None
        _put_generators(self.loader, state["now"])

    def end(self) -> None:
        """Its workers are found among this process's children."""


def _own_generators(loader: Any) -> dict[str, torch.Generator]:
    """The generators that a DataLoader and its samplers have for themselves."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    places = {"loader": loader, "sampler": sampler, "batch_sampler": batch_sampler}
    places["inner"] = getattr(batch_sampler, "sampler", None)
    found = {name: getattr(place, "generator", None) for name, place in places.items()}
    return {name: one for name, one in found.items() if isinstance(one, torch.Generator)}


def _get_generators(loader: Any) -> dict[str, torch.Tensor]:
    return {name: generator.get_state() for name, generator in _own_generators(loader).items()}


def _put_generators(loader: Any, states: dict[str, torch.Tensor]) -> None:
    for name, generator in _own_generators(loader).items():
        if name in states:
            generator.set_state(states[name])


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


def make_loader(
    dataset: Any,
    *,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    rank: int,
    world_size: int,
    seed: int,
    fetched_ahead: int,
    before_first: Callable[[], None],
    options: dict[str, Any],
) -> RunLoader | StatefulRunLoader:
    """The loader for a dataset of either kind. Raises UsageError for options that are ours to set."""
    for name in ("sampler", "batch_sampler", "generator"):
        if options.get(name) is not None:
            raise UsageError(
                f"run.loader makes the {name} itself, so that the order survives a resume. With a {name} of your own, "
                "make a DataLoader as usual and give it to run.batches(loader)."
            )
        options.pop(name, None)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        if fetched_ahead:
            raise UsageError(
                f"fetched_ahead={fetched_ahead}: an iterable dataset can't go back to a batch that the loop had "
                "fetched and not trained on. Fetch no batches ahead of run.step(), or use a dataset with __getitem__ "
                "and __len__"
            )
        if shuffle:
            raise UsageError("an iterable dataset can't be shuffled by its loader; shuffle inside of the dataset")
        options["drop_last"] = drop_last
        return StatefulRunLoader(dataset, batch_size, batch_size * world_size, before_first, options)
    if len(dataset) == 0:
        raise UsageError("the dataset is empty")
    order = GlobalOrder(dataset, batch_size, rank, world_size, shuffle, drop_last, seed)
    if len(order) == 0:
        raise UsageError(
            f"{len(dataset)} samples make no global batch of {order.global_batch} with drop_last; lower batch_size"
        )
    return RunLoader(dataset, order, seed, fetched_ahead, before_first, options)


def end_workers(loaders: Iterable[Positioned], patience_seconds: float = 1.0) -> None:
    """End data workers when the run is over: they ignore SIGTERM, and would hang the exit.

    Ours are asked to end; whatever other loaders' workers are left then are killed.
    """
    for loader in loaders:
        loader.end()
    children = [child for child in multiprocessing.active_children() if child.daemon]
    deadline = time.monotonic() + patience_seconds
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    left = [child for child in children if child.is_alive()]
    if left and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise here for each that is killed
    for child in left:
        child.kill()
        child.join(patience_seconds)
