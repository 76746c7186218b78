"""Every DataLoader of this process while a run is open, whoever made it, and whenever.

Law: one seam, where torch makes a loader's iterator; put on when the run is opened, taken off when it is over. The
user's loader is as it was once its iterator is made. Workers are deaf to the signals that stop a run, whichever process
of the job they reach: a worker that dies of one takes its rank down, and the steps since the last checkpoint with it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from autoresume.data.worker_seeds import private_worker_seed
from autoresume.data.workers import WorkerInit


class EveryLoader:
    """`numbers` gives the rank and the life, as far as known."""

    def __init__(self, numbers: Callable[[], tuple[int, ...]]) -> None:
        self._numbers = numbers
        self._seams: list[tuple[type[DataLoader[Any]], Any, Any]] = []
        """The class, torch's method, and ours."""

    def install(self) -> None:
        kinds = [DataLoader]
        stateful = getattr(sys.modules.get("torchdata.stateful_dataloader"), "StatefulDataLoader", None)
        if stateful is not None and "_get_iterator" in vars(stateful):
            kinds.append(stateful)  # it makes its iterators by itself
        for kind in kinds:
            original: Any = vars(kind)["_get_iterator"]
            ours = self._around(original)
            setattr(kind, "_get_iterator", ours)  # noqa: B010  (mypy: a method is assigned to)
            self._seams.append((kind, original, ours))

    def remove(self) -> None:
        """Put torch's methods back, where nobody has put on others since."""
        for kind, original, ours in self._seams:
            if vars(kind)["_get_iterator"] is ours:
                setattr(kind, "_get_iterator", original)  # noqa: B010
        self._seams.clear()

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
