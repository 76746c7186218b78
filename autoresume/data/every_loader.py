"""Every DataLoader of this process while a run is open, whoever made it, and whenever.

Law: two seams, where a loader is iterated and where its iterator is made: torch's own, and those of each kind of loader
that does so by itself (torchdata's, accelerate's), whether its class is there already or comes later. Put on when the
run is opened, taken off when it is over. The user's loader is as it was once its iterator is made. Workers are deaf to
the signals that stop a run, whichever process of the job they reach: a worker that dies of one takes its rank down, and
the steps since the last checkpoint with it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from autoresume.data import batch_observer
from autoresume.data.drawing import MOST_HELD, replaced
from autoresume.data.loader_pass import Sampler, running, unfollowed
from autoresume.data.worker_rng import NotingWorker, WorkerGenerators
from autoresume.data.worker_seeds import private_worker_seed
from autoresume.data.workers import WorkerInit

_ITERATE, _MAKE = "__iter__", "_get_iterator"
_NEW_KIND = "__init_subclass__"

Begin = Callable[["DataLoader[Any]", Callable[[], "Iterator[Any]"]], "Iterator[Any]"]
"""begin(loader, make): what a loop gets in place of make()."""


class EveryLoader:
    """`numbers` gives the rank and the life, as far as known; `begin` is called where a loader is iterated."""

    def __init__(self, numbers: Callable[[], tuple[int, ...]], begin: Begin) -> None:
        self._numbers = numbers
        self._begin = begin
        self._seams: list[tuple[type[DataLoader[Any]], str, Any, Any]] = []
        """The class, the method's name, its method, and ours."""
        self._new_kind: Any = None

    def install(self) -> None:
        for kind in dict.fromkeys(_kinds(DataLoader)):
            self._put_on(kind)
        if _NEW_KIND not in vars(DataLoader):
            self._new_kind = classmethod(self._put_on_new_kind)
            setattr(DataLoader, _NEW_KIND, self._new_kind)

    def remove(self) -> None:
        """Put the methods back, where nobody has put on others since."""
        for kind, name, original, ours in self._seams:
            if vars(kind)[name] is ours:
                setattr(kind, name, original)
        self._seams.clear()
        if self._new_kind is not None:
            delattr(DataLoader, _NEW_KIND)
            self._new_kind = None

    def _put_on(self, kind: type[DataLoader[Any]]) -> None:
        for name, around in ((_ITERATE, self._around_iterating), (_MAKE, self._around_making)):
            original = vars(kind).get(name)
            if original is not None:
                ours = around(original)
                setattr(kind, name, ours)
                self._seams.append((kind, name, original, ours))

    def _put_on_new_kind(self, kind: type[DataLoader[Any]], /, **options: Any) -> None:
        super(DataLoader, kind).__init_subclass__(**options)
        self._put_on(kind)

    def _around_iterating(self, original: Any) -> Any:
        @functools.wraps(original)
        def iterate(loader: DataLoader[Any]) -> Any:
            if running() is not None or loader in unfollowed:
                return original(loader)
            return self._begin(loader, lambda: original(loader))

        return iterate

    def _around_making(self, original: Any) -> Any:
        @functools.wraps(original)
        def get_iterator(loader: DataLoader[Any]) -> Any:
            batch_observer.saw_workers(getattr(loader, "num_workers", 0))
            with contextlib.ExitStack() as stack:
                sampler = _followed_sampler(loader)
                if getattr(loader, "num_workers", 0) > 0:
                    stack.enter_context(replaced(loader, worker_init_fn=_first_in_workers(loader, sampler)))
                if sampler is not None and sampler.seed is not None:
                    generator = torch.Generator()
                    generator.set_state(sampler.seed)
                    stack.enter_context(replaced(loader, generator=generator))
                elif getattr(loader, "persistent_workers", False):
                    stack.enter_context(private_worker_seed(loader, *self._numbers()))
                if sampler is not None:
                    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
                    stack.enter_context(replaced(loader, **{name: sampler}))
                return original(loader)

        return get_iterator


def _first_in_workers(loader: DataLoader[Any], sampler: Sampler | None) -> WorkerInit:
    chained = loader.worker_init_fn
    if sampler is None or isinstance(loader.dataset, IterableDataset):
        return WorkerInit(chained)
    sampler.generators = WorkerGenerators(loader.num_workers, (loader.prefetch_factor or 2) + MOST_HELD + 2)
    return NotingWorker(chained, sampler.generators, sampler.begin)


def _followed_sampler(loader: DataLoader[Any]) -> Sampler | None:
    """What torch's iterator gets in place of the loader's sampler, where it is made for a pass that is followed."""
    current = running()
    if current is None:
        return None
    made = Sampler(loader, loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
    drawing = current.drawing(loader, made.sampler)
    if drawing is None:
        return None
    made.seed, made.begin = drawing.seed, drawing.workers_begin
    return made


def _kinds(kind: type[DataLoader[Any]]) -> Iterator[type[DataLoader[Any]]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)
