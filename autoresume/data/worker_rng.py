"""The random numbers of data workers: where each worker's generators stood behind each of its batches.

Law: a worker notes its generators, in memory that it shares with the rank, behind each batch that it reads; the rank
looks only at what belongs to batches that were trained on. After a resume the worker whose turn it is goes on from
there. Each batch is a worker's in turn, in the order in which they are handed out.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import fetch as torch_fetch

from autoresume.data.workers import WorkerInit
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState

_WORDS = 624
_PATIENCE_SECONDS = 10.0


def pack() -> np.ndarray[Any, Any]:
    """The generators of this process as bytes, always as many; without those of devices, which workers don't use."""
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    parts = (
        torch.get_rng_state().numpy(),
        np.array(words, dtype=np.uint32),
        np.asarray(numpy["state"]["key"], dtype=np.uint32),
        np.array([gauss is not None, numpy["state"]["pos"], numpy["has_gauss"]], dtype=np.int64),
        np.array([gauss or 0.0, numpy["gauss"]], dtype=np.float64),
    )
    return np.concatenate([part.view(np.uint8) for part in parts])


def unpack(packed: np.ndarray[Any, Any]) -> None:
    """Set the generators of this process to what `pack` made."""
    rest = 4 * (_WORDS + 1) + 4 * _WORDS + 3 * 8 + 2 * 8
    torch.set_rng_state(torch.from_numpy(packed[:-rest].copy()))
    words, key, flags, values = np.split(packed[-rest:], np.cumsum([4 * (_WORDS + 1), 4 * _WORDS, 3 * 8]))
    has_gauss, position, numpy_has_gauss = flags.copy().view(np.int64).tolist()
    gauss, numpy_gauss = values.copy().view(np.float64).tolist()
    random.setstate((3, tuple(words.copy().view(np.uint32).tolist()), gauss if has_gauss else None))
    np.random.set_state(("MT19937", key.copy().view(np.uint32), position, numpy_has_gauss, numpy_gauss))


class WorkerGenerators:
    """Of the workers of one iterator. `depth` is how many batches back can be looked."""

    def __init__(self, workers: int, depth: int) -> None:
        self.workers = workers
        self.packed = _shared(torch.zeros(workers, depth, len(pack()), dtype=torch.uint8))
        self.counts = _shared(torch.full((workers, depth), -1, dtype=torch.int64))
        """How many batches the worker had read, for each note."""
        self.drew = _shared(torch.zeros(workers, 2, dtype=torch.bool))
        """Whether a worker has drawn from its own generators, and from one that its dataset has."""

    def note(self, worker: int, count: int) -> None:
        """In the worker."""
        slot = count % self.counts.shape[1]
        self.counts[worker, slot] = -1
        self.packed[worker, slot] = torch.from_numpy(pack())
        self.counts[worker, slot] = count

    def state(self, given: int) -> torch.Tensor | None:
        """In the rank: where the workers' generators stand for batch `given` of the iterator and the ones after it, in
        the order of their turns; shape (workers, bytes). None if that is not there."""
        found = []
        for turn in range(given, given + self.workers):
            worker = turn % self.workers
            count = (given - worker + self.workers - 1) // self.workers if given > worker else 0
            if not self._wait(worker, count):
                return None
            found.append(self.packed[worker, count % self.counts.shape[1]].clone())
        return torch.stack(found)

    def _wait(self, worker: int, count: int) -> bool:
        """A worker that has not begun yet will, soon."""
        slot, deadline = count % self.counts.shape[1], time.monotonic() + _PATIENCE_SECONDS
        while int(self.counts[worker, slot]) != count:
            if int(self.counts[worker].max()) > count or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


class NotingWorker(WorkerInit):
    """Runs first in each worker: it goes on from `begin`, if that is given, and notes its generators from now on."""

    def __init__(
        self, chained: Callable[[int], None] | None, noted: WorkerGenerators, begin: torch.Tensor | None
    ) -> None:
        super().__init__(chained)
        self.noted, self.begin = noted, begin

    def __call__(self, worker: int) -> None:
        super().__call__(worker)
        if self.begin is not None:
            unpack(self.begin[worker].numpy())
        noted, original = self.noted, torch_fetch._MapDatasetFetcher.fetch
        noted.note(worker, 0)
        counted = itertools.count(1)

        def fetch(fetcher: Any, index: Any) -> Any:
            before = pack() if not noted.drew[worker, 0] else None
            own = _own_generators(fetcher.dataset) if not noted.drew[worker, 1] else []
            data = original(fetcher, index)  # type: ignore[no-untyped-call]
            noted.note(worker, next(counted))
            if before is not None and not np.array_equal(before, pack()):
                noted.drew[worker, 0] = True
            if own and own != _own_generators(fetcher.dataset):
                noted.drew[worker, 1] = True
            return data

        torch_fetch._MapDatasetFetcher.fetch = fetch  # type: ignore[method-assign]


def _own_generators(dataset: Any) -> list[str]:
    return [
        repr(GeneratorState(value).state_dict())
        for value in getattr(dataset, "__dict__", {}).values()
        if isinstance(value, GENERATOR_TYPES)
    ]
