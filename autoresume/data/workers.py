"""Data workers: what runs in them first, what their random numbers depend on, and their end.

Law: our signals are not for workers; they end with their queue, their parent, or `end_workers`. Random
numbers drawn for a sample in a worker depend on (seed, epoch, place in the epoch) alone, not on the
worker or its past.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from autoresume.data.resumable_loader import ResumableLoader
from autoresume.data.sampler import Sample
from autoresume.state import rng

IGNORED_IN_WORKERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class WorkerInit:
    """Runs first in each worker: our signals are not for it. It ends when its queue or its parent does."""

    def __init__(self, chained: Callable[[int], None] | None) -> None:
        self.chained = chained

    def __call__(self, worker: int) -> None:
        for number in IGNORED_IN_WORKERS:
            signal.signal(number, signal.SIG_IGN)
        if self.chained is not None:
            self.chained(worker)


class SeededDataset(Dataset[Any]):
    """The user's dataset; in a worker, each sample is drawn with generators seeded for its place."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._get_items

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> Any:
        self._seed(sample)
        return self.dataset[sample.item]

    def _get_items(self, samples: list[Sample]) -> Any:
        self._seed(samples[0])
        return self.dataset.__getitems__([sample.item for sample in samples])

    def _seed(self, sample: Sample) -> None:
        if torch.utils.data.get_worker_info() is None:
            return  # in the rank itself the global generators go on, and are part of the run's state
        value = rng.mix_seed(self.seed, sample.epoch, sample.position)
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)


def end_workers(loaders: Iterable[ResumableLoader], patience_seconds: float = 1.0) -> None:
    """End data workers when the run is over: they ignore SIGTERM, and would hang the exit.

    Ours are asked to end; whatever other loaders' workers are left then are killed.
    """
    for loader in loaders:
        loader.shut_down_workers()
    children = [child for child in multiprocessing.active_children() if child.daemon]
    deadline = time.monotonic() + patience_seconds
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    left = [child for child in children if child.is_alive()]
    if left and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise here for each that is killed
    for child in left:
        child.kill()
        child.join(patience_seconds)
