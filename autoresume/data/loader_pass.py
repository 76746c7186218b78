"""One pass over a torch DataLoader, of whatever class: counted, and begun where another one stood.

Law: undisturbed it gives the very batches of the loader, and draws the very random numbers. One that goes on draws
none. What is counted is what the loader hands out, whatever it fetches ahead inside.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from autoresume.data import batch_observer, own_state
from autoresume.data.drawing import Drawing
from autoresume.data.own_state import OwnState
from autoresume.data.worker_rng import WorkerGenerators
from autoresume.state import rng

log = logging.getLogger("autoresume")


class PassRecord:
    """What is known of a pass. The pass itself, its workers and what it has fetched ahead are the loop's alone."""

    def __init__(self, loader: DataLoader[Any], own: OwnState, again: dict[str, Any] | None) -> None:
        self.start = self.given = int(again["position"]) if again is not None else 0
        self.ended = False
        self.drawing: Drawing | None = None
        self.one_to_one = True
        """What the loader hands out is what its sampler draws, one for one."""
        self._begin = again["own"] if again is not None else own.changed(loader)
        self._own = own
        self._loader = weakref.ref(loader)

    def state(self, position: int) -> dict[str, Any]:
        """To go on from `position`, the number of batches that were handed out and trained on."""
        loader, drawing = self._loader(), self.drawing
        return {
            **(drawing.state(position) if drawing is not None else {}),
            "position": position,
            "own": self._begin,
            "changed": self._own.changed(loader) if loader is not None else {},
            "ended": self.ended,
            "seeks": drawing is not None and self.one_to_one and not drawing.is_stream and not drawing.too_often,
        }


class LoaderPass:
    """The iterator that a loop gets of its loader in place of torch's. `make` makes that."""

    def __init__(
        self, loader: DataLoader[Any], own: OwnState, make: Callable[[], Iterator[Any]], again: dict[str, Any] | None
    ) -> None:
        self.on_batch: Callable[[PassRecord, Any], None] = lambda record, batch: None
        self.before_batch: Callable[[], None] = _nothing
        self.loader = loader
        self.on_first: Callable[[LoaderPass], bool] | None = None
        """Called while the first batch is being fetched: whether there is one."""
        self._own, self._make = own, make
        self.restart(again)

    def restart(self, again: dict[str, Any] | None) -> None:
        """Begin from there. Nothing was handed out yet."""
        loader, self._again = self.loader, again
        if again is not None:
            self._own.put(loader, {path: value for path, value in again["own"].items() if not _of_dataset(path)})
        self.record = PassRecord(loader, self._own, again)
        with _running(self):
            if again is not None and not again["seeks"]:
                self.batches = self._skipped(self._make, again)
            else:
                self.batches = self._make()
        if again is not None:
            own_state.put(loader, {path: value for path, value in again["changed"].items() if _of_dataset(path)})

    def __iter__(self) -> LoaderPass:
        return self

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __next__(self) -> Any:
        record = self.record
        if record.given > record.start:
            self.before_batch()
        if self.on_first is not None:
            begins, self.on_first = self.on_first(self), None
            if not begins:
                record.ended = True
        drawing, stack = record.drawing, _stack()
        looks = drawing is not None and drawing.looks_at_stream()
        stack.append(self)
        try:
            if record.ended:
                raise StopIteration
            batch = next(self.batches)
        except StopIteration:
            record.ended = True
            raise
        finally:
            stack.pop()
            if record.drawing is not None:
                record.drawing.settle()
        if looks and drawing is not None:
            drawing.look_at_stream()
        record.given += 1
        self.on_batch(record, batch)
        return batch

    def _skipped(self, make: Callable[[], Iterator[Any]], again: dict[str, Any]) -> Iterator[Any]:
        """What can't seek is gone through, from generators as they were when it was begun."""
        now, count = rng.get_rng_state(), int(again["position"])
        for generators in again.get("begun", ())[:1]:
            rng.set_rng_state(generators["process"])
            own_state.put(self.loader, generators["own"])
        batches = make()
        log.warning(
            "skipping %d batches of a %s that can't seek: they are read, and left. With a state_dict in its dataset, "
            "run.loader(dataset) goes there at once",
            count,
            type(self.loader).__name__,
        )
        for done in range(count):
            next(batches, None)
            if done and done % 1000 == 0:
                log.info("skipped %d of %d batches", done, count)
        batch_observer.forget()
        own_state.put(self.loader, again.get("now", {}))
        rng.set_rng_state(now)
        return batches

    def drawing(self, loader: DataLoader[Any], sampler: Any) -> Drawing | None:
        """The sampler's pass in this one; None for a second one, which is not counted."""
        record, again = self.record, self._again
        if record.drawing is not None:
            if record.given == record.start and record.drawing.loader() is loader:
                return record.drawing  # torch asks once or twice
            record.one_to_one = False
            return None
        record.drawing = Drawing(loader, overrides_iteration(self.loader))
        if again is not None and again["seeks"]:
            record.drawing.go_on(sampler, again)
        elif again is not None:
            record.drawing.take_over_stream(again)
        return record.drawing


class Sampler:
    """A loader's sampler as torch's iterator sees it; that of workers that persist keeps it for all of its passes."""

    def __init__(self, loader: DataLoader[Any], sampler: Any) -> None:
        self.sampler = sampler
        self.seed: torch.Tensor | None = None
        """The generator of the workers' seed before it was drawn."""
        self.generators: WorkerGenerators | None = None
        self.begin: torch.Tensor | None = None
        """Where the workers' generators begin."""
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[Any]:
        current, loader = running(), self._loader()
        drawing = current.drawing(loader, self.sampler) if current is not None and loader is not None else None
        if drawing is None:
            return iter(self.sampler)
        drawing.worker_generators = self.generators
        indices = drawing.begin(self.sampler)
        if self.seed is None and loader is not None:
            own = loader.generator
            self.seed = own.get_state() if own is not None else torch.get_rng_state()
        drawing.seed = self.seed
        return indices

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)


unfollowed: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()
"""Loaders inside of other ones, whose position these keep."""

_local = threading.local()


def _stack() -> list[LoaderPass]:
    try:
        found: list[LoaderPass] = _local.stack
    except AttributeError:
        found = _local.stack = []
    return found


@contextlib.contextmanager
def _running(one: LoaderPass) -> Iterator[None]:
    stack = _stack()
    stack.append(one)
    try:
        yield
    finally:
        stack.pop()


def running() -> LoaderPass | None:
    """The pass that this thread is fetching a batch of."""
    stack = _stack()
    return stack[-1] if stack else None


def overrides_iteration(loader: DataLoader[Any]) -> bool:
    owner = next(kind for kind in type(loader).__mro__ if "__iter__" in vars(kind))
    return owner is not DataLoader and not owner.__module__.startswith("torchdata.")


def _nothing() -> None:
    """Before a batch."""


def _of_dataset(path: str) -> bool:
    return path.startswith("dataset.")
