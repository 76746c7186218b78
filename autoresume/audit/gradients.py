"""Gradients that are alive at a step boundary, and used behind it: a checkpoint has none of them.

Law: told only what was seen: behind the boundary a backward pass added to them, or an optimizer stepped with them.
Gradients that are there, and are cleared before anybody uses them, are ordinary. Looked at are the first boundaries, at
one parameter of each optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_BOUNDARIES = 16


class Gradients:
    """`tell` is called once, with what is to be told."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._left = _BOUNDARIES
        self._hooks: list[Any] = []

    def boundary(self, objects: Mapping[str, Any]) -> None:
        self._remove()
        if not self._left:
            return
        self._left -= 1
        for name, value in objects.items():
            parameter = _alive(value) if isinstance(value, torch.optim.Optimizer) else None
            if parameter is not None:
                self._watch(name, value, parameter)

    def _watch(self, name: str, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        version = gradient._version

        def is_used() -> bool:
            untouched = parameter.grad is gradient and gradient._version == version
            return untouched and bool(gradient.detach().any())

        def adds(_: torch.Tensor) -> None:
            if is_used():
                self._found(
                    f"gradients of {name!r} are added up over a step boundary: a checkpoint that is taken there has "
                    "none of them, and after a resume the next update lacks a part. Let a boundary come after the "
                    "optimizer's step alone: run.batches(loader, accumulate=4), or run.step() behind "
                    "optimizer.step()."
                )
            self._remove()

        def steps(stepping: torch.optim.Optimizer, *_: Any) -> None:
            if stepping is optimizer:
                if is_used():
                    self._found(
                        f"{name!r} steps with gradients from before a step boundary: a checkpoint that is taken there "
                        "has none of them, and after a resume that update is lost. Call run.step() behind "
                        "optimizer.step()."
                    )
                self._remove()

        own = parameter.register_hook(adds)  # type: ignore[no-untyped-call]
        self._hooks += [own, register_optimizer_step_pre_hook(steps)]

    def _found(self, message: str) -> None:
        self._left = 0
        self._tell(message)

    def _remove(self) -> None:
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()

    def close(self) -> None:
        self._left = 0
        self._remove()


def _alive(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """A parameter that has a gradient now."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.requires_grad:
                return parameter  # type: ignore[no-any-return]
    return None
