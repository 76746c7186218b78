"""A captured tree with its tensors put back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autoresume.errors import CheckpointInvalid
from autoresume.format import tree
from autoresume.state.generator import new_generator


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


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
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
    if not is_dense(value.shape, strides):
        raise ValueError(f"strides {strides!r}")
    if value.stride() == tuple(strides):
        return value  # it was read into a live tensor
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


def tensor_keys(value: Any) -> list[str]:
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
