"""A number that a device has still to compute: asked for when it is logged, and read when it is there.

Law: asking does not wait for the device, which would run dry behind a host that waits in each step.
"""

from __future__ import annotations

from typing import Any

import torch


class PendingNumber:
    """A tensor of one element, as it is in its device's order of things now."""

    def __init__(self, tensor: torch.Tensor) -> None:
        stream = torch.cuda.current_stream(tensor.device)
        self._number = tensor.detach().to("cpu", non_blocking=True)
        self._event = stream.record_event()

    @classmethod
    def of(cls, value: Any) -> PendingNumber | None:
        """None for what need not be waited for, or is no number."""
        if not isinstance(value, torch.Tensor) or value.device.type != "cuda" or value.numel() != 1:
            return None
        return None if value.is_complex() or type(value) not in (torch.Tensor, torch.nn.Parameter) else cls(value)

    def is_ready(self) -> bool:
        return bool(self._event.query())

    def value(self) -> int | float | bool:
        """Waits for it."""
        self._event.synchronize()
        found: int | float | bool = self._number.item()
        return found
