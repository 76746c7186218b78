"""A stored state into a live object.

Law: state that doesn't fit is an error that lists what differs, before anything is changed where that can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from autoresume.errors import StateError
from autoresume.state.in_place import loads_as_torch, mismatches
from autoresume.state.pickled import pickled
from autoresume.state.sharded import cut_to_shards, parameters
from autoresume.state.stateful import plain_name, state_of


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
            state = _checked(name, target, state)
        with torch.no_grad():
            state = cut_to_shards(target, state)
            options = [set(group) for group in getattr(target, "param_groups", ())]
            target.load_state_dict(_by_live_names(target, state) if isinstance(target, torch.nn.Module) else state)
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


def _checked(name: str, module: torch.nn.Module, state: Any) -> dict[str, Any]:
    """Names and shapes, both sides, before anything is changed; but for those of parts that load in their own way, or
    give their state a form of its own, of which only they can tell."""
    if not isinstance(state, Mapping):
        raise StateError(f"the stored state of {name!r} is no module's")
    stored: dict[str, Any] = {plain_name(key): value for key, value in state.items()}
    live = state_of(module)
    own = tuple(
        plain_name(f"{prefix}." if prefix else "")
        for prefix, part in module.named_modules()
        if not loads_as_torch(part)
    )
    judged = [
        {key: None if key.endswith(_EXTRA) else value for key, value in one.items() if not key.startswith(own)}
        for one in (stored, live)
    ]
    lines = mismatches(*judged)
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise StateError(
            f"{name!r} in the checkpoint and here differ in {len(lines)} places:\n  {shown}\n"
            f"Nothing was loaded. Build the model as it was; or take over what fits with restore.strict={{{name!r}: "
            "false}; or choose another run directory to start anew."
        )
    return stored


_EXTRA = "_extra_state"


def _by_live_names(module: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """As the module itself calls its tensors. Those whose elements share memory (expanded ones) are set here: torch
    writes to none of them, and leaves alone what is given to itself."""
    live = module.state_dict(keep_vars=True)
    names = {plain_name(key): key for key in live}
    found = {names.get(key, key): value for key, value in state.items()}
    for key, value in found.items():
        tensor: Any = live.get(key)
        if isinstance(value, torch.Tensor) and _is_expanded(tensor) and value.shape == tensor.shape:
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
            tensor.detach()[once].copy_(value[once])
            found[key] = tensor
    return found


def _is_expanded(tensor: Any) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape))
    )
