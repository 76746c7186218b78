"""Signals as flags.

Law: a handler notes the signal and the time, calls the handler that was there before, and does
nothing else. It belongs to the process that installed it: a forked child (a DataLoader worker) that
inherits it ignores the signal. What was there before is put back.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import time
from collections.abc import Iterable
from types import FrameType

from autoresume.errors import UsageError

PR_SET_PDEATHSIG = 1
STACKS_SIGNAL = signal.SIGRTMIN + 7
"""Asks a rank for the stacks of all its threads: far from what libraries use."""
_look = importlib.import_module("_signal").getsignal
"""What `signal.getsignal` asks, before it looks for an enum of that value: that took most of a step's boundary."""


class SignalTrap:
    """Notes signals. `first` is the first one received, `since` its monotonic time in seconds."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self.signals = tuple(signals)
        self.first: signal.Signals | None = None
        self.since = 0.0
        self.count = 0
        self._owner = os.getpid()
        self._before: dict[signal.Signals, object] = {}
        self._inside = False

    def install(self) -> None:
        """Put our handlers on, chaining whatever is there now. Calling it again puts ours on last again.

        Only the main thread may; elsewhere nothing happens, since Python would refuse.
        """
        for number in self.signals:
            if _look(number) == self._handle:
                continue
            there = signal.getsignal(number)
            try:
                signal.signal(number, self._handle)
            except ValueError:
                return  # not the main thread: whoever runs us there handles signals himself
            self._before[number] = there

    def restore(self) -> None:
        """Put back what was there, unless somebody else replaced ours meanwhile."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before if before is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._before.clear()

    def clear(self) -> None:
        self.first, self.count = None, 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner or self._inside:
            return  # a forked child's; or the handler that we chain to chains to us
        self.count += 1
        if self.first is None:
            self.first, self.since = signal.Signals(number), time.monotonic()
        before = self._before.get(signal.Signals(number))
        if callable(before) and before is not signal.default_int_handler:
            self._inside = True
            try:
                before(number, frame)
            finally:
                self._inside = False


def when_parent_dies(number: signal.Signals) -> None:
    """Ask the kernel to send us `number` when our parent dies. Does nothing where it can't."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def parse_signals(text: str) -> tuple[signal.Signals, ...]:
    """Signals from "TERM,USR1" or "SIGTERM SIGUSR1". Raises UsageError listing what is known."""
    found = []
    for word in text.replace(",", " ").split():
        name = word.upper() if word.upper().startswith("SIG") else f"SIG{word.upper()}"
        try:
            number = signal.Signals(int(word)) if word.isdigit() else signal.Signals[name]
        except (KeyError, ValueError):
            known = ", ".join(sorted(item.name for item in signal.Signals))
            raise UsageError(f"unknown signal {word!r}; known are {known}") from None
        if number in (signal.SIGKILL, signal.SIGSTOP):
            raise UsageError(f"{number.name} can't be caught by any program; choose another signal")
        found.append(number)
    return tuple(found)
