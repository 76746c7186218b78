"""The seed of persistent data workers, which torch draws once in a process and not once in an epoch.

Law: while a run is open, no DataLoader with persistent workers draws that seed from the global
generator or from one that its sampler shares, in whichever life: else a resumed process, which makes its
workers anew, would draw once more than the undisturbed one did. The user's loader is as it was when
its iterator is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
