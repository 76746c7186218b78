"""`parameter.data` while a run is open: whoever asks for it may write to it behind torch's back.

Law: torch counts what is written to a tensor, but not what is written through its `data`. A snapshot that is being
taken is joined before that is handed out, or replaced: what is written then is written behind the copy. Nothing else
changes; the attribute is as it was when nobody asks any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_data: Any = torch.Tensor.data
_askers: list[Callable[[], None]] = []


class ParameterData:
    """`before` is called before each access to a parameter's `data`."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        if not _askers:
            torch.nn.Parameter.data = property(_get, _set)  # type: ignore[assignment]
        _askers.append(before)

    def close(self) -> None:
        if self._before in _askers:
            _askers.remove(self._before)
            if not _askers and isinstance(vars(torch.nn.Parameter).get("data"), property):
                del torch.nn.Parameter.data


def _get(parameter: Any) -> Any:
    for before in _askers:
        before()
    return _data.__get__(parameter)


def _set(parameter: Any, value: Any) -> None:
    for before in _askers:
        before()
    _data.__set__(parameter, value)
