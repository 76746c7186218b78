"""Every DataLoader of this process while a run is open, whoever made it, and whenever.

Law: one seam, where a loader's iterator is made: torch's own, and that of each kind of loader that makes its iterators
by itself (torchdata's), whether its class is there already or comes later. Put on when the run is opened, taken off
when it is over. The user's loader is as it was once its iterator is made. Workers are deaf to the signals that stop a
run, whichever process of the job they reach: a worker that dies of one takes its rank down, and the steps since the
last checkpoint with it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from autoresume.data.worker_seeds import private_worker_seed
from autoresume.data.workers import WorkerInit

_SEAM = "_get_iterator"
_NEW_KIND = "__init_subclass__"


class EveryLoader:
    """`numbers` gives the rank and the life, as far as known."""

    def __init__(self, numbers: Callable[[], tuple[int, ...]]) -> None:
        self._numbers = numbers
        self._seams: list[tuple[type[DataLoader[Any]], Any, Any]] = []
        """The class, its method, and ours."""
        self._new_kind: Any = None

    def install(self) -> None:
        for kind in dict.fromkeys(_kinds(DataLoader)):
            self._put_on(kind)
        if _NEW_KIND not in vars(DataLoader):
            self._new_kind = classmethod(self._put_on_new_kind)
            setattr(DataLoader, _NEW_KIND, self._new_kind)

    def remove(self) -> None:
        """Put the methods back, where nobody has put on others since."""
        for kind, original, ours in self._seams:
            if vars(kind)[_SEAM] is ours:
                setattr(kind, _SEAM, original)
        self._seams.clear()
        if self._new_kind is not None:
            delattr(DataLoader, _NEW_KIND)
            self._new_kind = None

    def _put_on(self, kind: type[DataLoader[Any]]) -> None:
        original = vars(kind).get(_SEAM)
        if original is not None:
            ours = self._around(original)
            setattr(kind, _SEAM, ours)
            self._seams.append((kind, original, ours))

    def _put_on_new_kind(self, kind: type[DataLoader[Any]], /, **options: Any) -> None:
        super(DataLoader, kind).__init_subclass__(**options)
        self._put_on(kind)

    def _around(self, original: Any) -> Any:
        @functools.wraps(original)
        def get_iterator(loader: DataLoader[Any]) -> Any:
            with contextlib.ExitStack() as stack:
                if getattr(loader, "num_workers", 0) > 0:
                    stack.enter_context(_deaf_workers(loader))
                if getattr(loader, "persistent_workers", False):
                    stack.enter_context(private_worker_seed(loader, *self._numbers()))
                return original(loader)

        return get_iterator


def _kinds(kind: type[DataLoader[Any]]) -> Iterator[type[DataLoader[Any]]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


@contextlib.contextmanager
def _deaf_workers(loader: DataLoader[Any]) -> Iterator[None]:
    """Workers that are started in this block ignore the signals that stop a run."""
    # The loader's attributes are frozen against assignment, for users' sake; its dictionary isn't.
    kept = loader.__dict__["worker_init_fn"]
    loader.__dict__["worker_init_fn"] = WorkerInit(kept)
    try:
        yield
    finally:
        loader.__dict__["worker_init_fn"] = kept
