"""Two checkpoints, of ours or of others, value by value.

Law: names are those under which state is stored, objects first. Tensors are compared by value; how far apart they are
is told where they differ. Other values are the same if they are equal, and NaN is NaN.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoresume.errors import UsageError
from autoresume.format import tree
from autoresume.load.read_checkpoint import read_without_ranks
from autoresume.restore import origins
from autoresume.restore.weight_files import read_weights
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState

_SHOWN = 60
"""Characters of a value."""


@dataclass(frozen=True)
class Difference:
    """One name. `what`: only in A, only in B, shape, dtype, value, pickle. Of tensors that differ in value: how many
    elements do, by how much at most, and relative to the larger of both."""

    name: str
    what: str
    a: str = ""
    b: str = ""
    elements: int = 0
    of: int = 0
    absolute: float | None = None
    relative: float | None = None


def read_values(text: str) -> dict[str, Any]:
    """All values by name: of `SOURCE`, or `SOURCE@SELECTOR`, as `restore.from` and `restore.select` have them.

    What is each rank's own (generators, positions) is there for each rank. Raises UsageError, CheckpointInvalid.
    """
    source, at, selector = text.rpartition("@")
    if not at or Path(text).exists():
        source, selector = text, "latest"
    origin = origins.find_origin(source, Path.cwd())
    if origin.url is not None:
        raise UsageError(f"{text}: download it first, or export it; a comparison reads what lies here")
    if origin.foreign is not None:
        models = read_weights(origin.foreign).models
        return {
            tree.join(name, key) if name else key: value for name, one in models.items() for key, value in one.items()
        }
    place = origins.select_checkpoint(origin, selector)
    manifest = place.manifest()
    found: dict[str, Any] = {}
    for rank in range(manifest.world_size):
        states = read_without_ranks(place.storage, manifest, None if rank == 0 else frozenset({"run"}), rank).states
        prefix = f"rank {rank}: " if rank else ""
        states = {name: Pickle(value) if isinstance(value, bytes) else value for name, value in states.items()}
        found |= {f"{prefix}{name}": value for name, value in _leaves("", states)}
    return found


class Pickle(bytes):
    """An object that only pickles: it is not made here. The same object may have another pickle."""


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, GENERATOR_TYPES):
        value = GeneratorState(value).state_dict()
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(tree.join(path, key), item)
    elif isinstance(value, (list, tuple)) and value and not all(isinstance(item, (int, float, str)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(tree.join(path, index), item)
    else:
        yield path, value


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """What differs, in the order of `a`, then what only `b` has."""
    found = []
    for name, value in a.items():
        if name not in b:
            found.append(Difference(name, "only in A", _words(value)))
        else:
            difference = _one(name, value, b[name])
            if difference is not None:
                found.append(difference)
    return found + [Difference(name, "only in B", "", _words(value)) for name, value in b.items() if name not in a]


def _one(name: str, a: Any, b: Any) -> Difference | None:
    one, other = _tensor(a), _tensor(b)
    if isinstance(a, Pickle) and isinstance(b, Pickle):
        return None if a == b else Difference(name, "pickle", f"{len(a):,} bytes", f"{len(b):,} bytes")
    if one is None or other is None:
        return None if _equal(a, b) else Difference(name, "value", _words(a), _words(b))
    if one.shape != other.shape:
        return Difference(name, "shape", str(list(one.shape)), str(list(other.shape)))
    if one.dtype != other.dtype:
        return Difference(name, "dtype", str(one.dtype), str(other.dtype))
    unequal = (one != other) & ~((one != one) & (other != other)) if one.dtype.is_floating_point else one != other
    count = int(unequal.sum())
    if not count:
        return None
    left, right = one[unequal].double(), other[unequal].double()
    if one.dtype.is_complex:
        left, right = one[unequal].abs().double(), other[unequal].abs().double()
    apart = (left - right).abs()
    size = torch.maximum(left.abs(), right.abs())
    most = float((apart / size.clamp(min=1e-300)).max())
    return Difference(name, "value", "", "", count, one.numel(), float(apart.max()), most)


def _tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(value))
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, (torch.Tensor, np.ndarray)) or isinstance(b, (torch.Tensor, np.ndarray)):
        return False
    return type(a) is type(b) and bool(a == b)


def _words(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    text = os.fspath(value) if isinstance(value, os.PathLike) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
