"""DTensors of live objects: which box this rank holds, and a box put back as a DTensor.

Law: nothing here sends a message. Where a tensor will live is asked of the live object: its DTensor of the
same key, or, for optimizer state that does not exist yet, the parameter that it belongs to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autoresume.format import tree
from autoresume.state.stateful import state_of

_HOME = "torch.distributed." + ("_tensor" if torch.__version__.startswith("2.4.") else "tensor")
"""Where DTensor lives; public since torch 2.5."""


@dataclass(frozen=True)
class LocalShard:
    """What this rank holds of a sharded tensor of `shape`: the box, and a DTensor that is sharded alike."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    shape: tuple[int, ...]
    like: Any

    def to_dtensor(self, local: torch.Tensor) -> torch.Tensor:
        """The DTensor of which this rank holds `local`."""
        like = self.like
        made: torch.Tensor = sys.modules[_HOME].DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return made

    def shard_of(self, whole: torch.Tensor) -> torch.Tensor:
        """The same from the whole tensor."""
        box = tuple(slice(begin, begin + size) for begin, size in zip(self.offset, self.size))
        return self.to_dtensor(whole[box].clone())


def local_shard(like: Any) -> LocalShard:
    utilities = importlib.import_module(f"{_HOME}._utils")
    size, offset = utilities.compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return LocalShard(tuple(map(int, offset)), tuple(map(int, size)), tuple(like.shape), like)


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor. Where nobody has loaded their module, which takes a second, there is none."""
    kind = getattr(sys.modules.get(_HOME), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def local_shards(objects: Mapping[str, Any]) -> dict[str, LocalShard]:
    """What this rank holds of the sharded tensors of all objects, by key.

    A key that ends in "/" stands for every tensor directly below it that has the same shape: the state that
    an optimizer keeps, or will keep, for a parameter.
    """
    found: dict[str, LocalShard] = {}
    if not (dist.is_available() and dist.is_initialized()):
        return found
    for name, target in objects.items():
        if isinstance(target, torch.optim.Optimizer):
            for index, parameter in enumerate(parameters(target)):
                if is_sharded(parameter):
                    found[tree.join(tree.join(name, "state"), index) + "/"] = local_shard(parameter)
        elif callable(getattr(target, "state_dict", None)):
            found.update((key, local_shard(value)) for key, value in _tensors(state_of(target), tree.join("", name)))
    return found


def _tensors(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    """The DTensors of a state dict, with their keys as `tree.encode` joins them."""
    if is_sharded(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, tree.join(path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, tree.join(path, index))


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def shard_for(key: str, found: Mapping[str, LocalShard], shape: tuple[int, ...]) -> LocalShard | None:
    """What this rank holds of the stored tensor `key`, which has `shape`."""
    if key in found:
        return found[key]
    below = found.get(key.rpartition("/")[0] + "/")
    return below if below is not None and below.shape == shape else None


def cut_to_shards(target: Any, state: Any) -> Any:
    """`state` with whole tensors cut as the live object's DTensors are: it came into being after they were read."""
    if not (dist.is_available() and dist.is_initialized()):
        return state
    if isinstance(target, torch.optim.Optimizer):
        live = parameters(target)
        slots = {
            index: {key: cut_like(value, live[index]) for key, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": slots}
    return _fitted(state, state_of(target))


def _fitted(state: Any, live: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return cut_like(state, live)
    if isinstance(state, dict) and isinstance(live, Mapping):
        for key, value in state.items():
            state[key] = _fitted(value, live.get(key))
    elif isinstance(state, (list, tuple)) and isinstance(live, (list, tuple)) and len(state) == len(live):
        items = [_fitted(value, other) for value, other in zip(state, live)]
        return items if isinstance(state, list) else tuple(items)
    return state


def cut_like(value: Any, like: Any) -> Any:
    """A whole tensor cut as `like` is, if that is sharded and as large; any other value as it is."""
    plain = isinstance(value, torch.Tensor) and not is_sharded(value)
    return local_shard(like).shard_of(value) if plain and is_sharded(like) and value.shape == like.shape else value
