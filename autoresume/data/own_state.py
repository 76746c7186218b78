"""What a loader, its samplers and its dataset keep for themselves: generators, counters, orders.

Law: looking changes nothing. What is put back is put back in place. Of objects that torch itself makes, only the
generators and `epoch` are looked at: nothing else of them changes.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from autoresume.state.generator import GENERATOR_TYPES, GeneratorState

Values = dict[str, Any]
"""By path from the loader, e.g. "batch_sampler.sampler.epoch"."""

_DEPTH = 4
_MOST_ITEMS = 100_000
_SCALARS = (bool, int, float, str, type(None))


class OwnState:
    """Of one loader, which is held weakly by whoever holds this: `loader` is given with each call. `wrapper` is an
    object that iterates it in a generator of its own (accelerate's loaders)."""

    def __init__(self, loader: Any, wrapper: Any = None) -> None:
        self.wrapper: Callable[[], Any] = weakref.ref(wrapper) if wrapper is not None else lambda: None
        self._first = {path: _copied(value) for path, (_, _, value) in self._found(loader).items()}

    def _found(self, loader: Any) -> dict[str, tuple[Any, str, Any]]:
        wrapper = self.wrapper()
        outside = {
            f"wrapper.{name}": (wrapper, name, value)
            for name, value in getattr(wrapper, "__dict__", {}).items()
            if _is_generator(value) or type(value) in _SCALARS
        }
        return {**_found(loader), **outside}

    def generators(self, loader: Any) -> list[Any]:
        return [value for _, _, value in self._found(loader).values() if _is_generator(value)]

    def put(self, loader: Any, values: Values) -> None:
        _put(self._found(loader), values)

    def changed(self, loader: Any) -> Values:
        """What isn't as it was at first sight, generators always: path -> what it is now."""
        now = self._found(loader)
        return {
            path: _copied(value)
            for path, (_, _, value) in now.items()
            if _is_generator(value) or not _same(self._first.get(path, _NOTHING), value)
        }

    def drift(self, loader: Any) -> dict[str, list[Any]]:
        """path -> [at first sight, now] of what has changed."""
        now = self._found(loader)
        return {
            path: [self._first[path], _copied(value)]
            for path, (_, _, value) in now.items()
            if path in self._first and not _same(self._first[path], _copied(value))
        }

    def put_drift(self, loader: Any, drift: dict[str, list[Any]]) -> None:
        """What the script has not set to something else since: that counts."""
        self.put(loader, {path: now for path, (first, now) in drift.items() if _same(self._first.get(path), first)})


def put(loader: Any, values: Values) -> None:
    _put(_of_dataset(loader) if all(path.startswith("dataset.") for path in values) else _found(loader), values)


def _put(found: dict[str, tuple[Any, str, Any]], values: Values) -> None:
    for path in values.keys() & found.keys():
        owner, name, here = found[path]
        value = values[path]
        if _is_generator(here):
            GeneratorState(here).load_state_dict(value)
        elif isinstance(here, list):
            here[:] = value
        else:
            vars(owner)[name] = _copied(value)


def generators(loader: Any) -> Values:
    """The states of the generators of the loader and its samplers."""
    return {
        path: GeneratorState(value).state_dict()
        for path, (_, _, value) in _found(loader).items()
        if _is_generator(value) and not path.startswith("dataset.")
    }


def of_dataset(loader: Any) -> Values:
    """The generators and counters of the loader's dataset."""
    return {path: _copied(value) for path, (_, _, value) in _of_dataset(loader).items()}


def form(loader: Any) -> str:
    """What a loader is made of: it tells loaders of one place apart, and says whether one is still the same."""
    parts = []
    for path, one in _holders(loader):
        name = type(one).__qualname__
        if "num_replicas" in vars(one):
            name += f" for {vars(one)['num_replicas']}"  # of a part of the data: with other ranks it is another one
        parts.append(f"{path.rpartition('.')[2]}={name}" if path else name)
    dataset = getattr(loader, "dataset", None)
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        size = -1
    return (
        f"{' '.join(parts)}; {type(dataset).__qualname__} of {size}; batch_size={getattr(loader, 'batch_size', None)}"
    )


_NOTHING = object()


def _is_generator(value: Any) -> bool:
    return isinstance(value, GENERATOR_TYPES)


def _found(loader: Any) -> dict[str, tuple[Any, str, Any]]:
    """path -> (object, attribute, value)."""
    found = {}
    for path, owner in _holders(loader):
        ours = _kept_by_torch(owner)
        for name, value in vars(owner).items():
            if _is_generator(value) or (_is_plain(value) and (not ours or name == "epoch") and name not in _of_torch()):
                found[f"{path}.{name}" if path else name] = owner, name, value
    return {**found, **_of_dataset(loader)}


def _of_dataset(loader: Any) -> dict[str, tuple[Any, str, Any]]:
    dataset = getattr(loader, "dataset", None)
    return {
        f"dataset.{name}": (dataset, name, value)
        for name, value in getattr(dataset, "__dict__", {}).items()
        if _is_generator(value) or type(value) in _SCALARS
    }


def _holders(loader: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    waiting = [("", loader, _DEPTH)]
    while waiting:
        path, one, depth = waiting.pop(0)
        if id(one) in seen or not hasattr(one, "__dict__"):
            continue
        seen.add(id(one))
        yield path, one
        for name, value in vars(one).items():
            if depth and _may_hold(value):
                waiting.append((f"{path}.{name}" if path else name, value, depth - 1))


def _may_hold(value: Any) -> bool:
    """A loader, or a sampler, which need not be torch's."""
    kind = type(value)
    if isinstance(value, (Dataset, torch.Tensor, np.ndarray, torch.nn.Module)) or kind.__module__ == "builtins":
        return False
    if isinstance(value, (DataLoader, Sampler)):
        return True
    return "__iter__" in dir(kind) and hasattr(value, "__dict__") and not _is_generator(value)


def _kept_by_torch(owner: Any) -> bool:
    return type(owner).__module__.startswith("torch.utils.data") and not isinstance(owner, DataLoader)


_attributes: frozenset[str] = frozenset()


def _of_torch() -> frozenset[str]:
    """The attributes that each DataLoader has."""
    global _attributes
    if not _attributes:
        _attributes = frozenset(vars(DataLoader([0]))) | {"_iterator", "_IterableDataset_len_called"}  # type: ignore[arg-type]
    return _attributes


def _is_plain(value: Any, depth: int = 2) -> bool:
    if type(value) in _SCALARS:
        return True
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return int(value.nbytes) <= 8 * _MOST_ITEMS
    if type(value) in (list, tuple) and len(value) <= _MOST_ITEMS and depth:
        return all(_is_plain(item, depth - 1) for item in value)
    return False


def _copied(value: Any) -> Any:
    if _is_generator(value):
        return GeneratorState(value).state_dict()
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)
