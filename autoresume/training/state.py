"""What a run remembers: the tracked objects and `run.state`, as one tree of values and tensors.

Law: `capture` reads live objects into JSON and a flat list of tensors, `decode` turns them back into
state dicts. Nothing is pickled unless the user says `pickled(...)`, and nothing is dropped: a leaf
that can't be stored is a StateError naming its key.
"""

from __future__ import annotations

import importlib
import io
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from autoresume.errors import CheckpointInvalid, StateError, UsageError
from autoresume.format import tree
from autoresume.format.tensorfile import item_bytes

T = TypeVar("T")


class pickled(Generic[T]):
    """Track an object that can only be pickled. Stored in a file of its own, beside the tensors.

    A pickle runs code when it is loaded: it is read only where the same name is tracked as pickled
    again. After a restore `value` is the restored object, and, where it has a __dict__, the original
    object has taken over its content.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def dump(self) -> bytes:
        try:
            pickler: Any = importlib.import_module("cloudpickle")
        except ImportError:
            pickler = importlib.import_module("pickle")
        return bytes(pickler.dumps(self.value))

    def load(self, data: bytes) -> None:
        value = importlib.import_module("pickle").load(io.BytesIO(data))
        # Not by identity: cloudpickle makes a class of __main__ anew.
        same = [(kind.__module__, kind.__qualname__) for kind in (type(value), type(self.value))]
        if same[0] == same[1] and hasattr(self.value, "__dict__"):
            self.value.__dict__.clear()
            self.value.__dict__.update(value.__dict__)
        else:
            self.value = value


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
            if isinstance(there, (torch.Generator, np.random.Generator, random.Random)):
                _Generator(there).load_state_dict(_Generator(value).state_dict())
            else:
                self.__dict__[name] = value


class _Generator:
    """state_dict for the generators of torch, numpy and python."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.generator, torch.Generator):
            return {"kind": "torch", "device": str(self.generator.device), "state": self.generator.get_state()}
        if isinstance(self.generator, np.random.Generator):
            return {"kind": "numpy", "state": dict(self.generator.bit_generator.state)}
        return {"kind": "python", "state": self.generator.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(state["state"])
        elif isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = state["state"]
        else:
            self.generator.setstate(state["state"])


_GENERATORS = (torch.Generator, np.random.Generator, random.Random)


def _new_generator(state: dict[str, Any]) -> Any:
    made: Any
    if state["kind"] == "torch":
        device = state["device"] if torch.cuda.is_available() else "cpu"
        made = torch.Generator(device)
    elif state["kind"] == "numpy":
        bits = getattr(np.random, str(state["state"]["bit_generator"]), None)
        if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
            raise ValueError(f"unknown bit generator {state['state']['bit_generator']!r}")
        made = np.random.Generator(bits())
    else:
        made = random.Random()  # noqa: S311
    _Generator(made).load_state_dict(state)
    return made


def adapt(name: str, value: Any) -> Any:
    """Something with state_dict and load_state_dict for a tracked object. Raises UsageError."""
    value = unwrap(value)
    if isinstance(value, pickled):
        return value
    if isinstance(value, _GENERATORS):
        return _Generator(value)
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
    walker = _Walker(known_equal)
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


class _Walker:
    def __init__(self, known_equal: frozenset[int]) -> None:
        self.known_equal = known_equal
        self.promised = False
        self.leaves: list[Leaf] = []
        self._seen: dict[tuple[Any, ...], str] = {}
        self._kept: list[torch.Tensor] = []

    def leaf(self, key: str, value: Any) -> dict[str, Any] | None:
        if isinstance(value, torch.Tensor):
            tagged: dict[str, Any] = {tree.TAG: "tensor", "key": self._tensor(key, value)}
            if type(value) in _PLAIN and not value.is_contiguous() and _is_dense(value):
                tagged["strides"] = list(value.stride())  # channels_last, say: other strides round otherwise
            return tagged
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise StateError(f"array {key!r} is a {type(value).__qualname__}, and would come back as a plain array")
        if isinstance(value, np.ndarray):
            return {tree.TAG: "ndarray", "key": self._tensor(key, _from_numpy(key, value))}
        if isinstance(value, np.generic):
            array = np.asarray(value)
            return {tree.TAG: "scalar", "key": self._tensor(key, _from_numpy(key, array))}
        if isinstance(value, torch.Size):
            return {tree.TAG: "torch.Size", "items": list(value)}
        if isinstance(value, (torch.dtype, torch.device)):
            return {tree.TAG: f"torch.{type(value).__name__}", "name": str(value).removeprefix("torch.")}
        if isinstance(value, _GENERATORS):
            state = tree.encode(_Generator(value).state_dict(), self.leaf, key)
            return {tree.TAG: "generator", "state": state}
        return None

    def _tensor(self, key: str, value: torch.Tensor) -> str:
        if value.is_nested:
            raise StateError(f"tensor {key!r} is a nested tensor; only dense tensors can be stored")
        value = value.detach()
        local, shape, offset, ours = _box(key, value)
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
        sharded = shape != tuple(local.shape) or local is not value
        identity = (address, local.storage_offset(), tuple(local.shape), local.stride(), dtype, offset)
        if address and local.numel() and identity in self._seen:
            return self._seen[identity]  # a tied weight: stored once, referred to twice
        self._seen[identity] = key
        self._kept.append(local)  # an address names a tensor only while that is alive
        split = not sharded and (self.promised or address in self.known_equal) and local.numel() > 0
        if not ours:
            return key  # another rank with the same box stores it
        self.leaves.append(Leaf(key, local, dtype, shape, offset, split, split or sharded))
        return key


def _from_numpy(key: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        writable = array if array.flags.writeable else array.copy()
        return torch.from_numpy(np.ascontiguousarray(writable).reshape(array.shape))
    except (TypeError, ValueError) as error:
        raise StateError(f"array {key!r} of dtype {array.dtype} can't be stored: {error}") from None


def _box(key: str, value: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...], bool]:
    """(local tensor, whole shape, offset of the local box, whether this rank stores it)."""
    from torch.distributed.tensor import DTensor  # costs 0.1 s where nothing is distributed, once

    if not isinstance(value, DTensor):
        return value, tuple(value.shape), (0,) * value.dim(), True
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in value.placements):
        raise StateError(f"tensor {key!r} is a partial sum over ranks; redistribute it before it is stored")
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    coordinate = value.device_mesh.get_coordinate()
    ours = coordinate is not None and all(
        place == 0 for place, placement in zip(coordinate, value.placements) if placement.is_replicate()
    )
    return value.to_local(), tuple(value.shape), tuple(int(item) for item in offset), ours


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A captured tree with its tensors put back. Raises CheckpointInvalid."""

    def leaf(tagged: dict[str, Any]) -> Any:
        tag = tagged[tree.TAG]
        if tag in ("tensor", "ndarray", "scalar"):
            if tagged["key"] not in tensors:
                raise CheckpointInvalid(f"the tensor {tagged['key']!r} is not in any part of the checkpoint")
            tensor = tensors[tagged["key"]]
            if tag == "tensor":
                return _strided(tensor, tagged.get("strides"))
            return tensor.numpy() if tag == "ndarray" else tensor.numpy()[()]
        if tag == "torch.Size":
            return torch.Size(tagged["items"])
        if tag == "torch.dtype":
            found = getattr(torch, tagged["name"], None)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"unknown dtype {tagged['name']!r}")
            return found
        if tag == "torch.device":
            return torch.device(tagged["name"])
        if tag == "generator":
            return _new_generator(tree.decode(tagged["state"], leaf))
        raise ValueError(f"unknown type {tag!r}")

    return tree.decode(value, leaf)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the strides are those of a permuted contiguous tensor, without holes or overlaps."""
    expected = 1
    for stride, size in sorted((t, s) for t, s in zip(value.stride(), value.shape) if s != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _strided(value: torch.Tensor, strides: list[int] | None) -> torch.Tensor:
    if strides is None:
        return value
    if len(strides) != value.dim() or any(type(stride) is not int or stride < 0 for stride in strides):
        raise ValueError(f"strides {strides!r}")
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype)
    if not _is_dense(made):
        raise ValueError(f"strides {strides!r}")
    return made.copy_(value)


def references(value: Any) -> Iterable[str]:
    """The keys of all tensors that a captured tree refers to."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        if value.get(tree.TAG) in ("tensor", "ndarray", "scalar"):
            yield value["key"]
        else:
            for item in value.values():
                yield from references(item)


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
                if name not in ignored and not _is_distributed(parameter):
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


def _is_distributed(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
