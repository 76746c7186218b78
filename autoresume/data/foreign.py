"""Loaders and iterables that were not made by `run.loader`, under `run.batches`.

Law: nothing of the user's loader is changed. Its batches are counted. A DataLoader goes on by drawing its indices
again; another iterable with the DataLoaders that it takes its batches from, or else it is skipped through: that is
said.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from autoresume.data import batch_observer, own_state
from autoresume.data.counters import LoopCount
from autoresume.data.following import Following
from autoresume.data.loader_pass import LoaderPass, PassRecord
from autoresume.data.resumable_loader import PassTurn
from autoresume.errors import UsageError
from autoresume.state import rng

log = logging.getLogger("autoresume")


class ForeignLoader:
    """Somebody else's loader or iterable, under `run.batches`: the position is counted, and found again."""

    def __init__(
        self,
        loader: Iterable[Any],
        world_size: int,
        turn: Callable[[], str],
        following: Following,
    ) -> None:
        # Whether somebody else still holds it tells whether it may be used again.
        self._held: Callable[[], Any] = weakref.ref(loader) if isinstance(loader, DataLoader) else lambda: loader
        self._batch_size = getattr(loader, "batch_size", None) or 1
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self.over = False
        self.count = LoopCount()
        self.counts_epochs = False
        """`run.batches(loader, epochs=...)`: the sampler is told the epoch; else that is left to the script."""
        self._turn = PassTurn(turn)
        self._following = following
        self._record: PassRecord | None = None
        self._again: dict[str, Any] | None = None
        """What the pass goes on from."""
        self._at_begin: dict[str, Any] | None = None
        self._inside = False
        """Its batches come from DataLoaders that are followed: those know where they are."""
        self._empty = False
        """The restored pass had come to its end: it gives nothing."""
        self._handed_out = 0

    @property
    def loader(self) -> Any:
        """None when nobody holds it any more."""
        return self._held()

    @property
    def gave_all(self) -> bool:
        try:
            return 0 < len(self.loader) <= self._handed_out
        except TypeError:
            return False

    def reseed(self, seed: int) -> None:
        """Its order is its own."""

    def start_next_epoch_if_over(self) -> None:
        counted = self.gave_all and self._record is not None and self._record.given > self._record.start
        if self.over or counted or self._turn.left():
            self.epoch, self.position, self._handed_out = self.epoch + 1, 0, 0
            self.over, self._empty, self._again, self._at_begin = False, False, None, None

    def iterate(self) -> Iterator[Any]:
        self._turn.begin()
        if self._empty:
            self.over, self._empty = True, False
            return
        batches = self._begin()
        self._handed_out = self.position
        while True:
            fetched = self._following.fetched
            try:
                batch = next(batches)
            except StopIteration:
                self.over = True
                return
            self._inside = self._following.fetched > fetched
            self._handed_out += 1
            batch_observer.note(batch)
            yield batch

    def _begin(self) -> Iterator[Any]:
        """The epoch's batches from the position. In the middle of an epoch the generators are as they were when this
        returns."""
        loader = self.loader
        if isinstance(loader, DataLoader):
            return self._pass(loader)
        batches: Iterator[Any]
        if self._inside and self.position:
            batches = iter(loader)
            return batches
        now = rng.get_rng_state()
        again = self._at_begin
        if again is not None:
            rng.set_rng_state(again["global"])
            own_state.put(loader, again["own"])
        self._at_begin = {"global": rng.get_rng_state(), "own": own_state.generators(loader)}
        batches = iter(loader)
        if self.position:
            log.warning(
                "skipping %d batches of a %s that can't seek; run.loader(dataset) goes there at once",
                self.position,
                type(loader).__name__,
            )
        for done in range(self.position):
            next(batches, None)
            if done and done % 1000 == 0:
                log.info("skipped %d of %d batches", done, self.position)
        batch_observer.forget()
        if again is not None:
            rng.set_rng_state(now)
        return batches

    def _pass(self, loader: DataLoader[Any]) -> LoaderPass:
        own = self._following.own_state(loader)
        again, self._again = self._again, None
        if again is None and self._record is not None and self.position:
            again = self._record.state(self.position)  # the loop was left, and is entered again
        if self.counts_epochs and again is None:
            for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
                if callable(getattr(sampler, "set_epoch", None)):
                    sampler.set_epoch(self.epoch)  # type: ignore[union-attr]
        made = LoaderPass(loader, own, lambda: type(loader).__iter__(loader), again)
        self._record = made.record
        return made

    def commit(self) -> int:
        batches = self._handed_out - self.position
        self.position = self._handed_out
        return max(0, batches) * self._batch_size * self.world_size

    def problems(self) -> list[str]:
        drawing = self._record.drawing if self._record is not None else None
        return drawing.problems() if drawing is not None else []

    def state_dict(self) -> dict[str, Any]:
        loader = self.loader
        own = self._following.own_state(loader) if isinstance(loader, DataLoader) else None
        going = self._again
        if going is None and self._record is not None and self.position and not self.over:
            going = self._record.state(self.position)
        return {
            "kind": "foreign",
            "epoch": self.epoch,
            "position": self.position,
            "over": self.over or self._empty,
            "turn": self._turn.begun,
            "begin": self._at_begin,
            "inside": self._inside,
            "pass": going,
            "drift": own.drift(loader) if own is not None and going is None else {},
            "now": own_state.generators(loader) if loader is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("kind") != "foreign":
            raise UsageError(f"this loader was a {state.get('kind')} loader when the checkpoint was written")
        self.epoch, self.position, self._empty = int(state["epoch"]), int(state["position"]), bool(state["over"])
        self._handed_out = self.position
        self._at_begin, self._inside = state["begin"] if self.position else None, bool(state["inside"])
        self._again = state["pass"]
        self._turn.load_state(state)
        loader = self.loader
        if isinstance(loader, DataLoader):
            self._following.own_state(loader).put_drift(loader, state["drift"])
        own_state.put(loader, state["now"])

    def follow(self, state: dict[str, Any]) -> None:
        begun = bool(state["over"]) or int(state["position"]) > 0
        self.epoch = int(state["epoch"]) + begun  # its generators are new ones, as the script has made them

    def shut_down_workers(self) -> None:
        """Its workers are found among this process's children."""
