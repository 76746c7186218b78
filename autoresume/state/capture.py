"""What a run remembers: the tracked objects and `run.state`, as one tree of values and tensors.

Law: `capture` reads live objects into JSON and a flat list of tensors, `decode` turns them back into
state dicts. Nothing is pickled unless the user says `pickled(...)`, and nothing is dropped: a leaf
that can't be stored is a StateError naming its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autoresume.errors import StateError
from autoresume.format import tree
from autoresume.format.tensorfile import item_bytes
from autoresume.state.decode import is_dense
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.pickled import pickled
from autoresume.state.sharded import is_sharded, local_shard
from autoresume.state.stateful import state_of


@dataclass(frozen=True)
class Leaf:
    """One tensor of the state: this rank's box of it, as live memory. `offset` and `tensor.shape` give the box."""

    key: str
    tensor: torch.Tensor
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    split: bool
    """True: every rank holds all of it and stores a share; False: stored as it is."""
    shared: bool
    """True: one tensor for all ranks (replicated, or sharded over them); False: this rank's own."""


@dataclass
class Captured:
    """A run's state at one moment: JSON with references, and the tensors they refer to."""

    tree: Any
    leaves: list[Leaf]
    attachments: dict[str, bytes] = field(default_factory=dict)


def capture(objects: Mapping[str, Any], known_equal: frozenset[int], promised: frozenset[str]) -> Captured:
    """Read the state of all `objects`. Copies nothing: the leaves are the live tensors.

    `known_equal` holds the storage addresses of tensors that are equal on all ranks, `promised` the
    names of objects that the user says are. Raises StateError.
    """
    walker = Walker(known_equal)
    attachments: dict[str, bytes] = {}
    result: dict[str, Any] = {}
    for name, value in objects.items():
        if isinstance(value, pickled):
            attachments[name] = value.dump()
            result[name] = {tree.TAG: "pickled", "attachment": name}
        else:
            walker.promised = name in promised
            result[name] = tree.encode(state_of(value), walker.leaf, tree.join("", name))
    return Captured(result, walker.leaves, attachments)


class Walker:
    """Reads the tensors of state dicts for `tree.encode`, in its order. `visits` has each tensor's key, and the number
    of its leaf, which is None where another rank stores it, and an earlier one's where it is the same memory."""

    def __init__(self, known_equal: frozenset[int]) -> None:
        self.known_equal = known_equal
        self.promised = False
        self.leaves: list[Leaf] = []
        self.visits: list[tuple[str, int | None]] = []
        self.others = 0
        """Arrays and generators met so far: values that hold tensors, and are none."""
        self.seen: dict[tuple[Any, ...], tuple[str, int | None]] = {}
        """By identity: the same memory, seen in the same way."""
        self._kept: list[torch.Tensor] = []

    def leaf(self, key: str, value: Any) -> dict[str, Any] | None:
        if isinstance(value, torch.Tensor):
            tagged: dict[str, Any] = {tree.TAG: "tensor", "key": self._tensor(key, value)}
            if type(value) in _PLAIN and not value.is_contiguous() and is_dense(value.shape, value.stride()):
                tagged["strides"] = list(value.stride())  # channels_last, say: other strides round otherwise
            return tagged
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise StateError(f"array {key!r} is a {type(value).__qualname__}, and would come back as a plain array")
        if isinstance(value, (np.ndarray, np.generic, *GENERATOR_TYPES)):
            self.others += 1
        if isinstance(value, np.ndarray):
            return {tree.TAG: "ndarray", "key": self._tensor(key, _from_numpy(key, value))}
        if isinstance(value, np.generic):
            array = np.asarray(value)
            return {tree.TAG: "scalar", "key": self._tensor(key, _from_numpy(key, array))}
        if isinstance(value, torch.Size):
            return {tree.TAG: "torch.Size", "items": list(value)}
        if isinstance(value, (torch.dtype, torch.device)):
            return {tree.TAG: f"torch.{type(value).__name__}", "name": str(value).removeprefix("torch.")}
        if isinstance(value, GENERATOR_TYPES):
            state = tree.encode(GeneratorState(value).state_dict(), self.leaf, key)
            return {tree.TAG: "generator", "state": state}
        return None

    def _tensor(self, key: str, value: torch.Tensor) -> str:
        if torch.nn.parameter.is_lazy(value):
            raise StateError(
                f"tensor {key!r} of a lazy layer has no size yet: no batch has come through it. Call the model with a "
                "batch before it is tracked, or leave the layer out"
            )
        if value.is_nested:
            raise StateError(f"tensor {key!r} is a nested tensor; only dense tensors can be stored")
        value = value.detach()
        local, shape, offset, ours, everywhere = _box(key, value)
        if local.is_meta:
            raise StateError(f"tensor {key!r} is on the meta device: it has no values to store yet")
        if local.layout is not torch.strided or local.is_quantized:
            raise StateError(f"tensor {key!r} is {local.layout}, quantized or nested; only dense tensors can be stored")
        dtype = str(local.dtype).removeprefix("torch.")
        try:
            item_bytes(dtype)
        except StateError as error:
            raise StateError(f"tensor {key!r}: {error}") from None
        address = local.untyped_storage().data_ptr()
        sharded = everywhere and local is not value
        identity = (address, local.storage_offset(), tuple(local.shape), local.stride(), dtype, offset)
        if address and local.numel() and identity in self.seen:
            seen = self.seen[identity]  # a tied weight: stored once, referred to twice
            self.visits.append(seen)
            return seen[0]
        self._kept.append(local)  # an address names a tensor only while that is alive
        split = local is value and (self.promised or address in self.known_equal) and local.numel() > 0
        visit = (key, len(self.leaves) if ours else None)  # another rank with the same box stores it, if not we
        self.seen[identity] = visit
        self.visits.append(visit)
        if ours:
            self.leaves.append(Leaf(key, local, dtype, shape, offset, split, split or sharded))
        return key


def _from_numpy(key: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        writable = array if array.flags.writeable else array.copy()
        return torch.from_numpy(np.ascontiguousarray(writable).reshape(array.shape))
    except (TypeError, ValueError) as error:
        raise StateError(f"array {key!r} of dtype {array.dtype} can't be stored: {error}") from None


def _box(key: str, value: Any) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...], bool, bool]:
    """(local tensor, whole shape, offset of the local box, whether this rank stores it, whether all ranks share it).

    A mesh of some of the ranks has others beside it, as FSDP has where tensors are parallel, too: what those
    hold is as a rule the same, and not known to be, so each rank stores its own box.
    """
    if not is_sharded(value):
        return value, tuple(value.shape), (0,) * value.dim(), True, False
    if any(placement.is_partial() for placement in value.placements):
        raise StateError(f"tensor {key!r} is a partial sum over ranks; redistribute it before it is stored")
    coordinate = value.device_mesh.get_coordinate()
    everywhere = value.device_mesh.size() == torch.distributed.get_world_size()
    ours = coordinate is not None and (
        not everywhere
        or all(place == 0 for place, placement in zip(coordinate, value.placements) if placement.is_replicate())
    )
    return value.to_local(), tuple(value.shape), local_shard(value).offset, ours, everywhere


_PLAIN = (torch.Tensor, torch.nn.Parameter)
