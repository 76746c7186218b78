"""`run.loader(...)` over an iterable or stateful dataset.

Law: the position is the state of torchdata's iterator that the loop trains on, as it was at the step
boundary. An iterator that is dropped before a boundary, or comes to its end without one, leaves no
trace in it.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from autoresume.data import batch_observer, stream_state
from autoresume.data.counters import LoopCount
from autoresume.data.loader_pass import unfollowed
from autoresume.data.resumable_loader import Fetching, PassTurn
from autoresume.errors import UsageError


class StatefulRunLoader:
    """torchdata's StatefulDataLoader with a position; iterated like `RunLoader`."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        samples_per_batch: int,
        turn: Callable[[], str],
        fetching: Fetching,
        options: Any,
    ) -> None:
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError as error:
            raise UsageError(
                "an iterable dataset needs torchdata to keep its position: pip install 'autoresume-hpc[stateful]'"
            ) from error
        self._kind: Any = StatefulDataLoader
        self._options = {"batch_size": batch_size, **options}
        self.loader = self._make(dataset)
        self._believed: bool | None = None
        """Whether the state that the dataset offers is used; None before that is known."""
        self.dataset = dataset
        self.batch_size = batch_size
        self.epoch = 0
        self.over = False
        self.count = LoopCount()
        self.driven = False
        self._resumes = False
        """The next pass goes on with one of an earlier life."""
        self._samples_per_batch = samples_per_batch
        self._turn = PassTurn(turn)
        self._fetching = fetching
        self._restored: dict[str, Any] | None = None
        self._empty = False
        """The restored pass had come to its end: it gives nothing."""
        self._latest: weakref.ref[_StatefulPass] | None = None
        self._stepped: _StatefulPass | None = None
        """The one that the loop trains on."""

    @property
    def gave_all(self) -> bool:
        return False

    def reseed(self, seed: int) -> None:
        """An iterable dataset brings its own order."""

    def start_next_epoch_if_over(self) -> None:
        if self.over or self._turn.left():
            self.epoch, self.over, self._empty = self.epoch + 1, False, False
            self._restored, self._latest, self._stepped = None, None, None

    def iterate(self) -> Iterator[Any]:
        self.driven = True
        return self._pass()

    def __iter__(self) -> Iterator[Any]:
        if self.driven:
            self._decide_on_state()
            return iter(self.loader)
        self.start_next_epoch_if_over()
        return self._pass()

    def _pass(self) -> _StatefulPass:
        self._turn.begin()
        if not self.driven:
            self.count.begin(self.epoch, False)
        if self._empty:
            return _StatefulPass(self, iter(()), 0)
        self._decide_on_state()
        state = self._position()
        if self._resumes:
            self._resumes = False
            self._fetching.going_on()
        if state is not None:
            self.loader.load_state_dict(state)
        else:
            # As DataLoader does, for the workers' seed: the script's own random numbers stay those that they were.
            torch.empty((), dtype=torch.int64).random_()
        return _StatefulPass(self, iter(self.loader), _count(state) if state is not None else 0)

    def _make(self, source: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 calls it
            made = self._kind(source, generator=torch.Generator(), **self._options)
        unfollowed.add(made)
        return made

    def _decide_on_state(self) -> None:
        if self._believed is None:
            self._believed = stream_state.believe(self.dataset) if stream_state.offers_state(self.dataset) else True
        if not self._believed and not isinstance(self.loader.dataset, stream_state.Stateless):
            self.loader = self._make(stream_state.Stateless(self.dataset))

    def _position(self) -> dict[str, Any] | None:
        return self._stepped.state() if self._stepped is not None else self._restored

    def commit(self) -> int:
        # A loop holds its iterator; one that was dropped (a look, an evaluation that stopped early) is gone.
        latest = self._latest() if self._latest is not None else None
        if latest is None or not latest.unread:
            return 0
        self._stepped = latest
        consumed, latest.unread = latest.unread * self._samples_per_batch, 0
        return consumed

    def problems(self) -> list[str]:
        latest = self._stepped if not self.driven else None
        return self.count.before_boundary(latest) if latest is not None else []

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "stateful",
            "epoch": self.epoch,
            "state": self._restored if self.over else self._position(),
            "over": self.over or self._empty,
            "turn": self._turn.begun,
            "driven": self.driven,
            "believed": self._believed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "stateful":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        self.epoch, self._restored, self._empty = int(state["epoch"]), state["state"], bool(state["over"])
        self.driven, self._believed = bool(state["driven"]), state["believed"]
        self._turn.load_state(state)
        self._resumes = self._restored is not None

    def follow(self, state: dict[str, Any]) -> None:
        self._believed = state["believed"]
        begun = bool(state["over"]) or state["state"] is not None
        self.epoch, self.driven = int(state["epoch"]) + begun, bool(state["driven"])

    def shut_down_workers(self) -> None:
        """Its workers are found among this process's children."""


class _StatefulPass:
    """From the position to the end of the stream. Moves its owner's position once a boundary came meanwhile."""

    def __init__(self, owner: StatefulRunLoader, batches: Any, start: int) -> None:
        self.owner = owner
        self.batches = batches
        self.unread = 0
        """Batches handed out since the last boundary."""
        self._start = start
        """The batches of the stream before it."""
        self._given = 0

    def state(self) -> dict[str, Any]:
        """torchdata's, with our count: torchdata counts batches twice that it had to skip at a restore, and the next
        life would skip all of those."""
        state = self.batches.state_dict()
        return _with_count(state, self._start + self._given)

    def __iter__(self) -> _StatefulPass:
        return self

    def __next__(self) -> Any:
        owner = self.owner
        if self._given:
            owner._fetching.fetching()
        if not owner.driven and not owner.count.goes_on(self):
            raise StopIteration
        try:
            batch = next(self.batches)
        except StopIteration:
            nothing_left = owner._restored is not None and not self._given
            if owner.driven or owner._empty or nothing_left or owner._stepped is self:
                owner.over, owner._empty = True, False
            else:
                owner._latest = None  # an evaluation, from end to end between two boundaries, moves nothing
            raise
        if not owner.driven:
            owner.count.turn(owner.epoch)
        self.unread, self._given = self.unread + 1, self._given + 1
        owner._latest = weakref.ref(self)
        batch_observer.note(batch)
        return batch


def _count(state: dict[str, Any]) -> int:
    """How many batches torchdata's iterator had given: without workers it says so; with them, up to a moment before."""
    if "_snapshot" not in state:
        return int(state["_num_yielded"])
    return int(state["_snapshot"]["_snapshot_step"] + state["_steps_since_snapshot"])


def _with_count(state: dict[str, Any], count: int) -> dict[str, Any]:
    if "_snapshot" not in state:
        return {**state, "_num_yielded": count}
    return {**state, "_snapshot": {**state["_snapshot"], "_snapshot_step": count - state["_steps_since_snapshot"]}}
