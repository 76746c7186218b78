"""A state that an iterable dataset offers is tried once before it is believed.

Law: the trial is made on copies, before the dataset is read, and leaves no trace in the process's random numbers. A
dataset whose state does not bring the same items back is read as one without state: what was consumed is skipped.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from autoresume.data import wrappers
from autoresume.state import rng

log = logging.getLogger("autoresume")

_BEFORE, _AFTER = (3, 100, 2000), 4
"""Items that are read before the state is taken (a buffer may be that long), and those that must come again."""
_SECONDS = 1.0
"""No further trial is begun after so long."""
_ATTRIBUTES = ("state_dict", "load_state_dict")


class Stateless(IterableDataset[Any]):
    """A dataset without the state that it offers."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        yield from self.dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name in _ATTRIBUTES:
            raise AttributeError(name)
        return getattr(self.dataset, name)


def offers_state(dataset: Any) -> bool:
    return all(callable(getattr(dataset, name, None)) for name in _ATTRIBUTES)


def try_state(dataset: Any) -> bool | None:
    """Whether its state brings the same items back; None where that can't be tried."""
    if wrappers.state_is_incomplete(dataset):
        return False
    before, began = rng.get_rng_state(), time.monotonic()
    try:
        return all(time.monotonic() - began > _SECONDS or _comes_back(dataset, count) for count in _BEFORE)
    except Exception as error:  # noqa: BLE001  (it is the script's code)
        log.warning(
            "the state that %s offers could not be tried on a copy (%s: %s): it is believed, at your risk. If it is "
            "not complete, the data after a resume are others.",
            type(dataset).__name__,
            type(error).__name__,
            error,
        )
        return None
    finally:
        rng.set_rng_state(before)


def _comes_back(dataset: Any, count: int) -> bool:
    one = copy.deepcopy(dataset)
    items = iter(one)
    if len(list(itertools.islice(items, count))) < count:
        return True  # it has come to its end
    state = copy.deepcopy(one.state_dict())
    read = rng.get_rng_state()
    expected = list(itertools.islice(items, _AFTER))
    rng.set_rng_state(read)
    other = copy.deepcopy(dataset)
    other.load_state_dict(state)
    return _same(expected, list(itertools.islice(iter(other), _AFTER)))


def believe(dataset: Any) -> bool:
    """Try the state, and say what comes of it."""
    found = try_state(dataset)
    if found is False:
        log.warning(
            "the state that %s offers does not bring the same items back (a shuffle buffer that it does not hold?): it "
            "is not used, and after a resume what was consumed is read again, and left.",
            type(dataset).__name__,
        )
    return found is not False


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    try:
        return bool(one == other) or one != one
    except Exception:  # noqa: BLE001  (it is the script's code)
        return True  # what can't be compared
