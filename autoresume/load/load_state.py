"""A stored state into a live object.

Law: state that doesn't fit is an error that lists what differs, before anything is changed where that can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from autoresume.errors import StateError
from autoresume.state.in_place import mismatches
from autoresume.state.pickled import pickled
from autoresume.state.sharded import cut_to_shards, parameters


def load_state(name: str, target: Any, state: Any) -> None:
    """Load one object's state. Raises StateError that says what doesn't fit."""
    if isinstance(target, pickled) != isinstance(state, bytes):
        raise StateError(
            f"{name!r} was stored {'as a pickle' if isinstance(state, bytes) else 'without pickle'}, but is tracked "
            f"{'with' if isinstance(target, pickled) else 'without'} pickled(...); track it as it was stored"
        )
    try:
        if isinstance(target, pickled):
            target.load(state)
            return
        if isinstance(target, torch.nn.Module):
            _check_module(name, target, state)
        with torch.no_grad():
            state = cut_to_shards(target, state)
            options = [set(group) for group in getattr(target, "param_groups", ())]
            target.load_state_dict(state)
            if isinstance(target, torch.optim.Optimizer):
                _check_options(name, target, options)
                _keep_values(target, state)
    except StateError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the stored state of {name!r} doesn't fit the live object: {error}") from error


def _check_options(name: str, optimizer: torch.optim.Optimizer, options: list[set[str]]) -> None:
    """Loading replaces the groups' options, also by those of another kind of optimizer, which lacks some of its own."""
    lost = sorted({option for own, group in zip(options, optimizer.param_groups) for option in own - set(group)})
    if lost:
        raise StateError(
            f"the stored state of {name!r} is of another kind of optimizer than {type(optimizer).__name__}: it has no "
            f"{', '.join(lost)}. Build it as it was, or let it begin anew with restore.fresh={name!r}"
        )


def _keep_values(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Loading moves state to its parameter's device: on the meta device, where parameters wait to be materialised
    (in place, as FSDP's are), it would lose its values."""
    for index, parameter in enumerate(parameters(optimizer)):
        if parameter.device.type == "meta":
            optimizer.state[parameter].update(state["state"].get(index, {}))


def _check_module(name: str, module: torch.nn.Module, state: Any) -> None:
    """Names and shapes, both sides, before anything is changed."""
    if not isinstance(state, Mapping):
        raise StateError(f"the stored state of {name!r} is no module's")
    lines = mismatches(state, module.state_dict())
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise StateError(
            f"{name!r} in the checkpoint and here differ in {len(lines)} places:\n  {shown}\n"
            f"Nothing was loaded. Build the model as it was; or take over what fits with restore.strict={{{name!r}: "
            "false}; or choose another run directory to start anew."
        )
