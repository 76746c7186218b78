"""`run.loader(...)`: a data loader whose position is part of the run.

Law: making an iterator draws nothing from the global generators. An iterator that is dropped before a
step boundary leaves no trace.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from autoresume.base.call_site import Lasting, call_site, lasting
from autoresume.data import batch_observer
from autoresume.data.counters import LoopCount
from autoresume.data.loader_pass import unfollowed
from autoresume.data.resumable_loader import Fetching, PassTurn
from autoresume.data.sampler import GlobalOrder
from autoresume.data.stateful import StatefulRunLoader
from autoresume.data.workers import SeededDataset
from autoresume.errors import UsageError
from autoresume.state import rng

log = logging.getLogger("autoresume")


class RunLoader:
    """`run.loader(...)`: torch's DataLoader over a map-style dataset, with a position.

    `run.batches` iterates from the position. Once it has, iterating the loader directly is a look at the
    current epoch from its beginning, which moves nothing. In a loop of one's own, which never uses
    `run.batches`, iterating begins at the position; iterators that are dropped before a step boundary, or
    come to their end without one (an evaluation), move nothing either. `fetched_ahead` is how many
    batches the loop holds at a boundary without having trained on them, also over an epoch's border.
    """

    def __init__(
        self,
        dataset: Any,
        order: GlobalOrder,
        fetched_ahead: int,
        turn: Callable[[], str],
        fetching: Fetching,
        options: dict[str, Any],
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.epoch = 0
        self.position = 0
        self.fetched_ahead = fetched_ahead
        self.driven = False
        self.over = False
        self.count = LoopCount()
        self._resumes = False
        """The next pass goes on with one of an earlier life."""
        self._turn = PassTurn(turn)
        self._fetching = fetching
        self._active: weakref.ref[_Pass] | None = None
        self._ended: _Pass | None = None
        self._loop: Lasting = []
        """Where in the script the loop is that trains on it, if it is one of the script's own."""
        self._last_given: _Mark | None = None
        """Of the pass that a step boundary came for last: the place behind what it has given."""
        self._ahead_rng: list[Any] = []
        """The generators as they were when each batch that is held at the boundary was fetched."""
        self._passes: weakref.WeakSet[_Pass] = weakref.WeakSet()
        self._generator = torch.Generator()  # a private one: iter() draws the workers' base seed from it
        self._samples = SeededDataset(dataset, 0)
        self.loader: DataLoader[Any] = DataLoader(
            self._samples, batch_sampler=order, generator=self._generator, **options
        )
        unfollowed.add(self.loader)

    @property
    def gave_all(self) -> bool:
        """Of what was given in this life."""
        active = self._active() if self._active is not None else None
        last = active.marks[-1] if active is not None else self._last_given
        return last is not None and last.epoch == self.epoch and self.order.over(last.position)

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

    def start_next_epoch_if_over(self) -> None:
        if self.over or self._turn.left() or (self.gave_all and self.order.over(self.position)):
            self.epoch, self.position = (self._ended.epoch if self._ended else self.epoch) + 1, 0
            self.over, self._active, self._last_given = False, None, None
            if not self.fetched_ahead:
                self._ended = None

    def iterate(self) -> Iterator[Any]:
        self.driven = True
        return self._pass(self.position, tracked=True)

    def __iter__(self) -> Iterator[Any]:
        if self.driven:
            return self._pass(0, tracked=False)
        self.start_next_epoch_if_over()
        made = self._pass(self.position, tracked=True)
        made.place = lasting(call_site())
        return made

    def _pass(self, position: int, tracked: bool) -> _Pass:
        if tracked:
            if self._resumes:
                self._resumes = False
                self._fetching.going_on()
            self._turn.begin()
            if not self.driven:
                self.count.begin(self.epoch, False)
        made = _Pass(self, self.epoch, position, tracked, self._ended if self.fetched_ahead else None)
        self._passes.add(made)
        return made

    def commit(self) -> int:
        # A loop holds its iterator; one that was dropped (a look, an evaluation that stopped early) is gone.
        active = self._active() if self._active is not None else None
        active = active or self._ended  # a prefetcher drops its iterator at its end, and still holds a batch
        if active is None:
            return 0
        samples = active.consume(self.fetched_ahead)
        self._last_given, self._loop = active.marks[-1], active.place or self._loop
        self._ahead_rng = [mark.drawn_with for mark in active.marks[1:] if mark.drawn_with is not None]
        drained = active is self._ended and not self.over and len(active.marks) == 1
        if active is not self._ended or drained:
            self._ended = None
        if not drained:  # else the next epoch has begun already, and nothing of this one is held any more
            self.epoch, self.position = active.marks[0].epoch, active.marks[0].position
        return samples

    def problems(self) -> list[str]:
        active = self._active() if self._active is not None and not self.driven else None
        return self.count.before_boundary(active, len(active.marks) - 1) if active is not None else []

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "map",
            "epoch": self.epoch,
            "position": self.position,
            "over": self.over or self._turn.was_over,
            "turn": self._turn.begun,
            "samples": self.order.samples,
            "driven": self.driven,
            "ahead": self._ahead_rng,
            "place": self._loop,
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
        self._active, self._ended, self.over = None, None, False
        self.epoch, self.position, self.driven = int(state["epoch"]), int(state["position"]), bool(state["driven"])
        self._ahead_rng, self._loop = list(state["ahead"]), list(state["place"])
        self._turn.load_state(state)
        self._resumes = self.position > 0

    def follow(self, state: dict[str, Any]) -> None:
        begun = bool(state["over"]) or int(state["position"]) > 0
        self.epoch, self.driven = int(state["epoch"]) + begun, bool(state["driven"])

    def shut_down_workers(self) -> None:
        self.loader._iterator = None
        for one in list(self._passes):
            one.batches = iter(())  # torch shuts the workers down when it loses its iterator


class _Mark(NamedTuple):
    """A place between two batches: after the one that was drawn with these generators (None: not kept)."""

    epoch: int
    position: int
    drawn_with: dict[str, Any] | None = None


class _Pass:
    """From a position to the end of its epoch. Only a tracked one can move its owner's position.

    `marks` are the places after what was consumed and after each batch handed out since. A loop that
    prefetches over an epoch's border still holds batches of the pass before, `ended`.
    """

    def __init__(self, owner: RunLoader, epoch: int, position: int, tracked: bool, ended: _Pass | None) -> None:
        self.owner = owner
        self.epoch = epoch
        self.tracked = tracked
        self.marks = [_Mark(epoch, position)]
        self.again = list(owner._ahead_rng) if tracked else []
        """The generators for the next batches, where those were held at the checkpoint: drawn as they were then."""
        if tracked and ended is not None:
            self.marks = ended.marks if len(ended.marks) > 1 else self.marks
            self.again = ended.again
        # Without workers a batch is drawn with the rank's own generators: those of held batches are kept.
        self._keeps_rng = tracked and owner.fetched_ahead > 0 and not owner.loader.num_workers
        self.exhausted = False
        self.place: Lasting = []
        self.stepped = False
        """A step boundary came while this was iterated: it is the loop's, no evaluation and no look."""
        self._next = position
        owner.order.seek(epoch, position)
        self.batches: Iterator[Any] = iter(owner.loader)

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Any:
        owner = self.owner
        if self.tracked and self.stepped:
            owner._fetching.fetching()
        if self.tracked and not owner.driven and not owner.count.goes_on(self):
            if owner.order.over(owner.position):
                self._finish()
            raise StopIteration
        now = rng.get_rng_state() if self.again else None
        if self.again:
            rng.set_rng_state(self.again[0])
        before = rng.get_rng_state() if self._keeps_rng else None
        try:
            batch = next(self.batches)
        except StopIteration:
            self._finish()
            raise
        finally:
            if now is not None:
                rng.set_rng_state(now)
        self.again = self.again[1:]
        begin, self._next = self._next, owner.order.after(self._next)
        if self.tracked:
            if not owner.driven:
                owner.count.turn(self.epoch)
            batch_observer.hand_out(
                owner, self.epoch, self._next, lambda: owner.order.indices(self.epoch, begin), batch
            )
            owner._active = weakref.ref(self)
            self.marks = [*self.marks, _Mark(self.epoch, self._next, before)]
        return batch

    def consume(self, ahead: int) -> int:
        """All that was handed out is consumed, but for what the loop holds. Returns the samples, of all ranks."""
        self.stepped = True
        handed_out = len(self.marks) - 1
        # At the end nothing more is fetched, so that one batch less is held at each boundary.
        held = max(0, handed_out - 1) if self.exhausted else min(ahead, handed_out)
        gone, self.marks = self.marks[: handed_out - held + 1], self.marks[handed_out - held :]
        samples = 0
        for before, after in itertools.pairwise(gone):
            batch_observer.consume(self.owner, after.epoch, after.position)
            samples += after.position - (before.position if before.epoch == after.epoch else 0)
        return samples

    def _finish(self) -> None:
        owner = self.owner
        nothing_left = owner.epoch == self.epoch and owner.order.over(owner.position)
        is_the_loops = self.stepped or owner.driven or (bool(self.place) and self.place == owner._loop)
        if self.tracked and (is_the_loops or nothing_left or owner.fetched_ahead):
            owner.over, owner._ended = True, self
        elif owner._active is not None and owner._active() is self:
            owner._active = None  # an evaluation, from end to end between two boundaries, moves nothing
        self.exhausted = True


class Place(NamedTuple):
    """Where a loader is made: on which of the ranks, and in which turn of the script's loops (`turn` tells)."""

    rank: int
    world_size: int
    turn: Callable[[], str]
    fetching: Fetching


def make_loader(
    dataset: Any,
    *,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    fetched_ahead: int,
    options: dict[str, Any],
    place: Place,
) -> RunLoader | StatefulRunLoader:
    """The loader for a dataset of either kind; `reseed` gives it its order. Raises UsageError for options that are
    ours to set."""
    rank, world_size, turn, fetching = place
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
        return StatefulRunLoader(dataset, batch_size, batch_size * world_size, turn, fetching, options)
    if len(dataset) == 0:
        raise UsageError("the dataset is empty")
    order = GlobalOrder(dataset, batch_size, rank, world_size, shuffle, drop_last, seed=0)
    if len(order) == 0:
        raise UsageError(
            f"{len(dataset)} samples make no global batch of {order.global_batch} with drop_last; lower batch_size"
        )
    return RunLoader(dataset, order, fetched_ahead, turn, fetching, options)
