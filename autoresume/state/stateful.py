"""What can be tracked: an object with state_dict and load_state_dict, whatever is wrapped around it."""

from __future__ import annotations

from typing import Any

import torch

from autoresume.errors import UsageError
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.pickled import pickled
from autoresume.state.rank_optimizer import RankOptimizer


def as_stateful(name: str, value: Any) -> Any:
    """Something with state_dict and load_state_dict for a tracked object. Raises UsageError."""
    value = unwrap(value)
    if isinstance(value, pickled):
        return value
    if RankOptimizer.takes(value):
        return RankOptimizer(name, value)
    if isinstance(value, GENERATOR_TYPES):
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


COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a module's parts that it has compiled."""


def state_of(value: Any) -> Any:
    """Its state dict; a module's by names that do not depend on what of it is compiled."""
    state = value.state_dict()
    if isinstance(value, torch.nn.Module) and any(COMPILED in key for key in state):
        return {plain_name(key): item for key, item in state.items()}
    return state


def plain_name(key: str) -> str:
    return key.replace(COMPILED, "")
