"""What a script tracks: objects by name, and the states that a checkpoint brought for them.

Law: nothing that a checkpoint holds is dropped in silence, and nothing that is tracked is left as it
was in silence. A state whose object does not exist yet waits for it: until `track`, until a module on the
meta device is materialised, at most until the first step boundary.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import StateError, UsageError
from autoresume.load.load_state import load_state
from autoresume.restore.report import RestoreReport
from autoresume.state.in_place import mismatches
from autoresume.state.replicated import replicated
from autoresume.state.stateful import as_stateful, state_of

_RESERVED = {"run": "the run's own counters and generators", "state": "run.state"}


class Tracked:
    """`objects` have state_dict and load_state_dict; `promised` are the names of those that are equal on all ranks."""

    def __init__(self, request: RestoreRequest, report: RestoreReport) -> None:
        self.objects: dict[str, Any] = {}
        self.promised: set[str] = set()
        self._given: dict[str, Any] = {}
        """What the script gave, wrappers and all. Held until the run is over: DDP that is freed in the moment after its
        last backward pass, where a script's function returns, deadlocks or aborts now and then (torch 2.13, gloo)."""
        self._request = request
        self._report = report
        self._waiting: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Note an object. Raises UsageError."""
        if name in _RESERVED:
            raise UsageError(f"run.track({name}=...): {name!r} is {_RESERVED[name]}; choose another name")
        if isinstance(value, replicated):
            self.promised.add(name)
            value = value.value
        self.objects[name] = as_stateful(name, value)
        self._given[name] = value

    def given(self) -> list[Any]:
        """What the script gave, as it gave it."""
        return list(self._given.values())

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {name: value for name, value in self.objects.items() if isinstance(value, torch.nn.Module)}

    def memory(self) -> frozenset[int]:
        """The addresses of what tracked modules keep their state in."""
        states = (module.state_dict(keep_vars=True) for module in self.modules.values())
        tensors = (value for state in states for value in state.values() if isinstance(value, torch.Tensor))
        return frozenset(_storage_address(tensor) for tensor in tensors) - {0}

    def load_states(self, states: Mapping[str, Any]) -> None:
        """Load what is tracked by now; the other states wait. Raises StateError."""
        missing = sorted(name for name in self.objects if name not in states)
        refused = [name for name in missing if not self._may_differ(name)]
        if refused:
            raise StateError(
                f"the checkpoint holds no state for {', '.join(refused)}, which this script tracks; it holds "
                f"{', '.join(sorted(states)) or 'nothing else'}. Nothing was lost; track what was tracked when the "
                f"checkpoint was written; or let it begin anew with restore.strict={{{refused[0]!r}: false}}; or "
                "choose another run directory to start anew."
            )
        self._report.missing += missing
        self._waiting = {name: state for name, state in states.items() if not self._request.is_fresh(name)}
        self._report.reset += [name for name in states if name not in self._waiting]
        for name in [name for name in self.objects if name in self._waiting]:
            self.load(name)

    def load(self, name: str) -> bool:
        """Load one object whose state waits; False if none does."""
        if name not in self._waiting:
            return self._request.is_fresh(name)
        target = self.objects[name]
        if _is_meta(target):
            # Nothing to load into yet. Its first forward pass is the last moment to do it.
            target.register_forward_pre_hook(lambda module, _: self.load_materialised())
        else:
            self._load(name, target, self._waiting.pop(name))
        return True

    def load_materialised(self) -> None:
        for name in [name for name in self._waiting if name in self.objects and not _is_meta(self.objects[name])]:
            self._load(name, self.objects[name], self._waiting.pop(name))

    def _may_differ(self, name: str) -> bool:
        return self._request.is_lenient(name) or self._request.is_fresh(name)

    def _load(self, name: str, target: Any, state: Any) -> None:
        inside, lenient = self._request.fresh_inside(name), self._request.is_lenient(name)
        if isinstance(target, torch.nn.Module) and isinstance(state, Mapping) and (inside or lenient):
            state = self._merge_states(name, target, state, inside, lenient)
        options = [dict(group) for group in target.param_groups] if isinstance(target, torch.optim.Optimizer) else []
        before = copy.deepcopy(target.state_dict()) if options and lenient else None
        try:
            load_state(name, target, state)
        except StateError as error:
            if not lenient or isinstance(target, torch.nn.Module):
                raise
            if before is not None:
                target.load_state_dict(before)
            self._report.reset.append(f"{name} ({error})")
            return
        self._report.restored.append(name)
        if options:
            self._keep_options(name, target, options, inside)

    def _merge_states(
        self, name: str, module: torch.nn.Module, state: Mapping[str, Any], fresh: list[str], lenient: bool
    ) -> dict[str, Any]:
        """The stored state with the live values of what stays as it is."""
        live = state_of(module)
        mixed = dict(state)
        for key in [key for key in live if any(fnmatch.fnmatchcase(key, pattern) for pattern in fresh)]:
            mixed[key] = live[key]
            self._report.reset.append(f"{name}.{key}")
        if lenient:
            self._report.notes += [f"{name}: {line}" for line in mismatches(mixed, live)]
            fits = {key: value for key, value in mixed.items() if key in live and _fits(value, live[key])}
            if not fits:
                raise StateError(
                    f"nothing of the stored {name!r} fits the live one, however lenient; is it another model?"
                )
            self._report.unused += [f"{name}.{key}" for key in mixed if key not in live]
            self._report.missing += [f"{name}.{key}" for key in live if key not in mixed]
            mixed = {**live, **fits}
        return mixed

    def _keep_options(self, name: str, optimizer: torch.optim.Optimizer, before: list[Any], fresh: list[str]) -> None:
        """Put back what of the parameter groups' options the script's own value counts for."""
        for group, own in zip(optimizer.param_groups, before):
            for option in fresh:
                if option in own and option != "params":
                    group[option] = own[option]
        self._report.reset += [f"{name}.{option}" for option in fresh]

    def refuse_waiting(self) -> list[str]:
        """At the first boundary: what was given up. Raises StateError if a state still waits that must not be."""
        given_up = [name for name in self._waiting if self._may_differ(name)]
        for name in given_up:
            del self._waiting[name]
            self._report.unused.append(name)
        if self._waiting:
            raise StateError(
                f"the checkpoint holds state of {', '.join(sorted(self._waiting))}, which this script doesn't track: "
                "it would be lost. Track it before the first step; or give it up with restore.strict="
                f"{{{sorted(self._waiting)[0]!r}: false}}; or choose another run directory to start anew."
            )
        return given_up

    def materialised(self) -> dict[str, Any]:
        return {name: value for name, value in self.objects.items() if not _is_lazy(value) and not _is_meta(value)}


def _storage_address(tensor: torch.Tensor) -> int:
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return (
        0
        if is_lazy(local) or local.is_meta or local.layout is not torch.strided
        else local.untyped_storage().data_ptr()
    )


def _fits(one: Any, other: Any) -> bool:
    """Whether a stored value can take the place of a live one."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    return not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor)


def _is_meta(value: Any) -> bool:
    """A module that is not materialised yet."""
    if not isinstance(value, torch.nn.Module):
        return False
    return any(isinstance(item, torch.Tensor) and item.is_meta for item in value.state_dict().values())


def _is_lazy(value: Any) -> bool:
    """A module whose layers take their sizes from the first batch, or from what they load."""
    return isinstance(value, torch.nn.Module) and any(map(is_lazy, [*value.parameters(), *value.buffers()]))
