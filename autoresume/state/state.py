"""What a run remembers: the tracked objects and `run.state`, as one tree of values and tensors.

Law: `capture` reads live objects into JSON and a flat list of tensors, `decode` turns them back into
state dicts. Nothing is pickled unless the user says `pickled(...)`, and nothing is dropped: a leaf
that can't be stored is a StateError naming its key.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from autoresume.errors import CheckpointInvalid, StateError, UsageError
from autoresume.format import tree
from autoresume.format.tensorfile import item_bytes
from autoresume.state.generator import GENERATORS, GeneratorState, new_generator
from autoresume.state.pickled import pickled
from autoresume.state.sharded import alike, held, is_sharded

T = TypeVar("T")


class replicated(Generic[T]):
    """Track an object of which every rank holds an equal copy, as a promise: it is stored once, split over ranks.

    For copies that autoresume can't know to be equal, such as an EMA that every rank computes. The
    promise is checked by digest when the layout is made; it is not needed for models under DDP and
    their optimizers.
    """

    def __init__(self, value: T) -> None:
        self.value = value


class Namespace:
    """`run.state`: attributes that are part of the run's state."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"run.state has no {name!r}; set it before it is read, or use run.state.get({name!r})")

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)

    def setdefault(self, name: str, default: Any) -> Any:
        return self.__dict__.setdefault(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"State({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            there = self.__dict__.get(name)
            if isinstance(there, GENERATORS):
                GeneratorState(there).load_state_dict(GeneratorState(value).state_dict())
            else:
                self.__dict__[name] = alike(value, there)


def adapt(name: str, value: Any) -> Any:
    """Something with state_dict and load_state_dict for a tracked object. Raises UsageError."""
    value = unwrap(value)
    if isinstance(value, pickled):
        return value
    if isinstance(value, GENERATORS):
        return GeneratorState(value)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return value
    raise UsageError(
        f"run.track({name}=...) takes objects with state_dict() and load_state_dict(), and generators; a "
        f"{type(value).__name__} has neither. Plain values belong into run.state, e.g. run.state.{name} = ...; an "
        f"object that only pickles can be tracked as pickled({name})."
    )


def unwrap(value: Any) -> Any:
    """The module inside DDP, DataParallel and torch.compile, so that its names do not depend on them."""
    while True:
        inner = getattr(value, "_orig_mod", None) if isinstance(value, torch.nn.Module) else None
        if inner is None and isinstance(value, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            inner = value.module
        if inner is None:
            return value
        value = inner


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
            result[name] = tree.encode(value.state_dict(), walker.leaf, tree.join("", name))
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
            if type(value) in _PLAIN and not value.is_contiguous() and _is_dense(value.shape, value.stride()):
                tagged["strides"] = list(value.stride())  # channels_last, say: other strides round otherwise
            return tagged
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise StateError(f"array {key!r} is a {type(value).__qualname__}, and would come back as a plain array")
        if isinstance(value, (np.ndarray, np.generic, *GENERATORS)):
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
        if isinstance(value, GENERATORS):
            state = tree.encode(GeneratorState(value).state_dict(), self.leaf, key)
            return {tree.TAG: "generator", "state": state}
        return None

    def _tensor(self, key: str, value: torch.Tensor) -> str:
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
    return value.to_local(), tuple(value.shape), held(value).offset, ours, everywhere


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A captured tree with its tensors put back. Raises CheckpointInvalid."""

    def leaf(tagged: dict[str, Any]) -> Any:
        try:
            return known(tagged)
        except (RuntimeError, AttributeError, LookupError, AssertionError) as error:  # theirs, of a device or state
            raise ValueError(f"{tagged[tree.TAG]}: {error}") from error

    def known(tagged: dict[str, Any]) -> Any:
        tag = tagged[tree.TAG]
        if tag in ("tensor", "ndarray", "scalar"):
            if tagged["key"] not in tensors:
                raise CheckpointInvalid(f"the tensor {tagged['key']!r} is not in any part of the checkpoint")
            tensor = tensors[tagged["key"]]
            if tag == "tensor":
                return _strided(tensor, tagged.get("strides"))
            return tensor.numpy() if tag == "ndarray" else tensor.numpy()[()]
        if tag == "torch.Size":
            return torch.Size([operator.index(item) for item in tagged["items"]])
        if tag == "torch.dtype":
            found = getattr(torch, tagged["name"], None)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"unknown dtype {tagged['name']!r}")
            return found
        if tag == "torch.device":
            return torch.device(tagged["name"])
        if tag == "generator":
            return new_generator(tree.decode(tagged["state"], leaf))
        raise ValueError(f"unknown type {tag!r}")

    return tree.decode(value, leaf)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the strides are those of a permuted contiguous tensor, without holes or overlaps."""
    expected = 1
    for stride, size in sorted((t, s) for t, s in zip(strides, shape) if s != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _strided(value: torch.Tensor, strides: list[int] | None) -> torch.Tensor:
    if strides is None:
        return value
    if len(strides) != value.dim() or any(type(stride) is not int or not 0 <= stride < 2**62 for stride in strides):
        raise ValueError(f"strides {strides!r}")
    if not _is_dense(value.shape, strides):
        raise ValueError(f"strides {strides!r}")
    if value.stride() == tuple(strides):
        return value  # it was read into a live tensor
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


def references(value: Any) -> list[str]:
    """The keys of all tensors that a captured tree refers to. Raises CheckpointInvalid."""
    found: list[str] = []
    try:
        _note_references(value, found)
    except (KeyError, RecursionError) as error:
        raise CheckpointInvalid(f"the state tree is malformed: {type(error).__name__}: {error}") from error
    if any(type(key) is not str for key in found):
        raise CheckpointInvalid("the state tree is malformed: a tensor's key is no string")
    return found


def _note_references(value: Any, found: list[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _note_references(item, found)
    elif isinstance(value, dict):
        if value.get(tree.TAG) in ("tensor", "ndarray", "scalar"):
            found.append(value["key"])
        else:
            for item in value.values():
                _note_references(item, found)


def known_equal_storages(objects: Mapping[str, Any]) -> frozenset[int]:
    """Storage addresses of what DDP keeps equal on all ranks: its parameters and their optimizer state.

    Buffers are not among them: batch norm statistics differ from rank to rank until somebody averages them.
    """
    import gc

    parameters: dict[int, torch.Tensor] = {}
    for thing in gc.get_objects():
        # Comparing types does not touch the object; isinstance would ask proxies for their class.
        if issubclass(type(thing), torch.nn.parallel.DistributedDataParallel):
            ignored: set[str] = getattr(thing, "parameters_to_ignore", set())
            for name, parameter in thing.module.named_parameters():
                if name not in ignored and not is_sharded(parameter):
                    parameters[id(parameter)] = parameter
    addresses = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    for value in objects.values():
        if isinstance(value, torch.optim.Optimizer):
            for parameter, state in value.state.items():
                if id(parameter) in parameters:
                    addresses.update(
                        item.untyped_storage().data_ptr() for item in state.values() if isinstance(item, torch.Tensor)
                    )
    return frozenset(addresses - {0})
