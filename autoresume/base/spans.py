"""Named stretches of time: what this program itself does, for traces.

Law: `span(name)` costs nearly nothing unless something records. Times are nanoseconds since 1970, so that what
different processes recorded fits together.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

_MOST = 100_000


class Span(NamedTuple):
    """Begin and end in nanoseconds since 1970; `thread` is the kernel's number."""

    name: str
    begin: int
    end: int
    process: int
    thread: int


_recorded: deque[Span] | None = None
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def set_recording(on: bool) -> None:
    """Begin to record in this process, or end it and forget what was recorded."""
    global _recorded
    if on != is_recording():
        _recorded = deque(maxlen=_MOST) if on else None


def is_recording() -> bool:
    return _recorded is not None


def take_recorded() -> list[Span]:
    """What was recorded since the last call."""
    found: list[Span] = []
    while _recorded:
        found.append(_recorded.popleft())
    return found


def add_recorded(others: Iterable[Iterable[Any]]) -> None:
    """What another process recorded."""
    if _recorded is not None:
        _recorded.extend(Span(*other) for other in others)


def span(name: str) -> AbstractContextManager[Any]:
    """`with span("copy"):` records how long the block takes, and where it runs."""
    return _Running(name) if _recorded is not None else _NOTHING


class _Running:
    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._begin = time.time_ns()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if _recorded is not None:
            thread = threading.get_native_id()
            _recorded.append(Span(self._name, self._begin, time.time_ns(), os.getpid(), thread))
