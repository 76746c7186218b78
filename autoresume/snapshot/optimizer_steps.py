"""Which memory is written to by the next optimizer step, and not before: what may be copied while training goes on.

Law: only of optimizers that were seen to step just now: one whose step is compiled, or part of a captured CUDA graph,
is not seen, and nothing would wait for the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autoresume.snapshot.devices import capturing
from autoresume.snapshot.parameter_data import ParameterData


class OptimizerSteps:
    """`before_step` is called before each step of any optimizer that can be seen, and before anybody gets at the `data`
    of a parameter."""

    def __init__(self, before_step: Callable[[], None]) -> None:
        self._before_step = before_step
        self._stepping: dict[int, torch.optim.Optimizer] = {}
        self._stepped: dict[int, torch.optim.Optimizer] = {}
        """Optimizers that have stepped since the last boundary, and before it, since the one before."""
        self._late: frozenset[int] = frozenset()
        self._late_for: tuple[Any, ...] | None = None
        self.any_seen = False
        self._hook = register_optimizer_step_pre_hook(self._called)
        self._data = ParameterData(before_step)

    def close(self) -> None:
        self._hook.remove()
        self._data.close()

    @property
    def any_since_boundary(self) -> bool:
        return bool(self._stepping)

    def at_boundary(self) -> None:
        self._stepped, self._stepping = self._stepping, {}

    def _called(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        """By torch, before each step of any optimizer."""
        if torch.compiler.is_compiling():
            return  # it would be compiled away; a compiled step is not seen, and nothing waits for it then
        if capturing():
            return  # it is not done now, and when it is replayed it is not seen
        self._stepping[id(optimizer)] = optimizer
        self.any_seen = True
        self._before_step()

    def late_addresses(
        self, form: object, frozen: Iterable[torch.Tensor] | None, objects: Mapping[str, Any]
    ) -> frozenset[int]:
        """Addresses of the memory that is written to by the next optimizer step, and not before, or not at all.

        `form` is the same object as long as the state has the same memory. `frozen` did not change lately (None: that
        is not believed): of it only frozen parameters count, since buffers, and arrays of the script's own, may be
        written to at any time.
        """
        made_for = (form, tuple(self._stepped), frozen is not None)
        if made_for != self._late_for:
            self._late, self._late_for = frozenset(self._find(frozen or (), objects)), made_for
        return self._late

    def _find(self, frozen: Iterable[torch.Tensor], objects: Mapping[str, Any]) -> set[int]:
        found: set[int] = set()
        if self._stepped:
            found.update(map(address, frozen))
            found.intersection_update(
                address(parameter)
                for module in objects.values()
                if isinstance(module, torch.nn.Module)
                for parameter in module.parameters()
                if not parameter.requires_grad
            )
        for optimizer in self._stepped.values():
            for group in optimizer.param_groups:
                found.update(address(parameter) for parameter in group["params"])
            for state in optimizer.state.values():
                found.update(address(value) for value in state.values() if isinstance(value, torch.Tensor))
        return found


def address(tensor: torch.Tensor) -> int:
    """Of the memory that this rank holds of it."""
    local = getattr(tensor, "_local_tensor", tensor)
    return int(local.data_ptr())
