"""What backward passes begin from: the losses of a step, whether the script logs them or not.

Law: torch's own function is put back when the run is over, unless somebody has put on another one since. A loss on a
device is asked for, and read when it is there.
"""

from __future__ import annotations

from typing import Any

import torch

from autoresume.snapshot.devices import capturing
from autoresume.snapshot.pending_number import PendingNumber

_MOST = 8
"""Of a step."""


class Losses:
    def __init__(self) -> None:
        self._found: list[Any] = []
        self._original = torch.autograd.backward
        self._ours = self._backward
        torch.autograd.backward = self._ours

    def take(self) -> list[Any]:
        """Numbers, or `PendingNumber`s, since this was called last."""
        found, self._found = self._found, []
        return found

    def remove(self) -> None:
        if torch.autograd.backward is self._ours:
            torch.autograd.backward = self._original

    def _backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        if len(self._found) < _MOST and not torch.compiler.is_compiling():
            self._note(tensors)
        self._original(tensors, *args, **kwargs)

    def _note(self, tensors: Any) -> None:
        for one in (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)[:_MOST]:
            if isinstance(one, torch.Tensor) and one.numel() == 1:
                number = number_of(one)
                if number is not None:
                    self._found.append(number)


def number_of(value: torch.Tensor) -> Any:
    """A number, or one that is still to come; None for what can't be asked for now."""
    if value.device.type == "cpu":
        return value.detach().item() if type(value) in (torch.Tensor, torch.nn.Parameter) else None
    return None if capturing() else PendingNumber.of(value)


def is_ready(value: Any) -> bool:
    return value.is_ready() if isinstance(value, PendingNumber) else True


def settled(value: Any) -> Any:
    """The number; complex ones as text."""
    found = value.value() if isinstance(value, PendingNumber) else value
    return found if isinstance(found, (bool, int, float)) else repr(found)
