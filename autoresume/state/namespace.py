"""`run.state`: attributes that are part of the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.sharded import cut_like


class Namespace:
    """`run.state`: attributes that are part of the run: numbers, strings, lists, dicts, tuples, arrays, tensors,
    generators. What they are at a save is stored. Reading one that was never set raises AttributeError."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"run.state has no {name!r}; set it before it is read, or use run.state.get({name!r})")

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute `name`, or `default` where it was never set."""
        return self.__dict__.get(name, default)

    def setdefault(self, name: str, default: Any) -> Any:
        """The attribute `name`, which is set to `default` first where it was never set."""
        return self.__dict__.setdefault(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"State({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"

    def state_dict(self) -> dict[str, Any]:
        """The attributes by name, not copied."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any], tracked_memory: frozenset[int] = frozenset()) -> None:
        """Set the attributes of `state`, as `restore` does, which gives `tracked_memory`.

        What the script has put here already stays the same object, and gets the stored content, where it can: others
        (an optimizer, a sampler) may hold it, too. A view of something else (a part of a data set) is left alone, as is
        memory of tracked modules, by its addresses: that has got its content."""
        for name, value in state.items():
            self.__dict__[name] = _restored(self.__dict__.get(name), value, tracked_memory)


def tensors_in(state: Namespace) -> list[torch.Tensor]:
    found, waiting = [], list(vars(state).values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            waiting.extend(value)
        elif type(value) is dict:
            waiting.extend(value.values())
    return found


def _restored(there: Any, value: Any, tracked_memory: frozenset[int]) -> Any:
    """The live object with the stored content; the stored one where that can't be: another type, form or size."""
    if isinstance(there, GENERATOR_TYPES):
        GeneratorState(there).load_state_dict(GeneratorState(value).state_dict())
        return there
    if type(there) is type(value) is np.ndarray and (there.shape, there.dtype) == (value.shape, value.dtype):
        if _has_own_memory(there) and there.flags.writeable:
            there[...] = value
            return there
    elif isinstance(there, torch.Tensor) and isinstance(value, torch.Tensor) and _takes(there, value, tracked_memory):
        with torch.no_grad():
            there.copy_(value)
        return there
    elif type(there) is type(value) is list:
        olds = [*there, *[None] * len(value)]
        there[:] = [_restored(old, one, tracked_memory) for old, one in zip(olds, value)]
        return there
    elif type(there) is type(value) is dict:
        made = {key: _restored(there.get(key), one, tracked_memory) for key, one in value.items()}
        there.clear()
        there.update(made)
        return there
    elif type(there) is type(value) is tuple and len(there) == len(value):
        return tuple(_restored(old, one, tracked_memory) for old, one in zip(there, value))
    return cut_like(value, there)


def _takes(there: torch.Tensor, value: torch.Tensor, tracked_memory: frozenset[int]) -> bool:
    plain = type(there) in (torch.Tensor, torch.nn.Parameter) and there.layout is torch.strided
    if not plain or there.is_meta or there.is_inference():
        return False
    storage = there.untyped_storage()
    return (
        (there.shape, there.dtype) == (value.shape, value.dtype)
        # One that is trained is the script's own. What came from numpy may be a part of something, and doesn't tell.
        and (storage.nbytes() >= there.nbytes if there.requires_grad else storage.nbytes() == there.nbytes)
        and (there.requires_grad or storage.resizable())
        and storage.data_ptr() not in tracked_memory
    )


def _has_own_memory(array: np.ndarray[Any, Any]) -> bool:
    """All of it: not a part of another one."""
    memory = array if array.base is None else array.base
    return isinstance(memory, np.ndarray) and memory.flags.owndata and memory.nbytes == array.nbytes
