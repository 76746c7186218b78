"""What can be tracked: an object with state_dict and load_state_dict, whatever is wrapped around it."""

from __future__ import annotations

from typing import Any

import torch

from autoresume.errors import UsageError
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.pickled import pickled


def as_stateful(name: str, value: Any) -> Any:
    """Something with state_dict and load_state_dict for a tracked object. Raises UsageError."""
    value = unwrap(value)
    if isinstance(value, pickled):
        return value
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
