"""The seed of persistent data workers, which torch draws once in a process and not once in an epoch.

Law: while a run is open, no DataLoader with persistent workers draws that seed from the global
generator or from one that its sampler shares, in whichever life: else a resumed process, which makes its
workers anew, would draw once more than the undisturbed one did. The user's loader is as it was when
its iterator is made; torch's class is as it was when the run is over.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from autoresume.state.rng import mix_seed

_count = 0


@contextlib.contextmanager
def private_worker_seed(loader: DataLoader[Any], *numbers: int) -> Iterator[None]:
    """An iterator of `loader` that is made in this block draws its workers' seed from (torch's seed, `numbers`, how
    often this was done in this process). Its sampler draws as ever."""
    global _count
    _count += 1
    generator = torch.Generator()
    generator.manual_seed(mix_seed(torch.initial_seed(), *numbers, _count))
    # The loader's attributes are frozen against assignment, for users' sake; its dictionary isn't.
    kept = loader.__dict__["generator"]
    loader.__dict__["generator"] = generator
    try:
        yield
    finally:
        loader.__dict__["generator"] = kept


class PrivateWorkerSeeds:
    """Sees to it for every DataLoader of this process. `numbers` gives the rank and the life, as far as known."""

    def __init__(self, numbers: Callable[[], tuple[int, ...]]) -> None:
        self._numbers = numbers
        self._original: Any = DataLoader._get_iterator
        self._ours = functools.wraps(self._original)(lambda loader: self._get_iterator(loader))

    def install(self) -> None:
        setattr(DataLoader, "_get_iterator", self._ours)  # noqa: B010  (mypy: a method is assigned to)

    def remove(self) -> None:
        """Put torch's method back, if nobody has put on another since."""
        if DataLoader.__dict__["_get_iterator"] is self._ours:
            setattr(DataLoader, "_get_iterator", self._original)  # noqa: B010

    def _get_iterator(self, loader: DataLoader[Any]) -> Any:
        if not getattr(loader, "persistent_workers", False):
            return self._original(loader)
        with private_worker_seed(loader, *self._numbers()):
            return self._original(loader)
