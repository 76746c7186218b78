"""Named places where a test, or a drill, may stop the world.

Law: `reach(name)` costs one dictionary look-up when no failpoint is set. Set one with
AUTORESUME_FAILPOINT="name", "name:3" (the third time), "name@1" (on rank 1 only), "name=eio" (another fault than the
kill), or all of it, "name@1:3=eio". By default the process kills itself with SIGKILL there, as a node failure would.
Tests in the same process give a callback to `observe` instead.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

_SLOW_SECONDS = 0.2
_DAY_SECONDS = 86400.0
_STORM = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGUSR2, signal.SIGWINCH)

ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "edquot": errno.EDQUOT, "erofs": errno.EROFS}
"""From that time on, in this process: a disk does not get well by itself."""
FAULTS = ("kill", "kill-parent", *ERRORS, "slow", "clock", "storm")


class _Armed(NamedTuple):
    name: str
    rank: str | None
    time: int
    fault: str


def parse(text: str) -> _Armed:
    """Raises ValueError."""
    text, _, fault = text.partition("=")
    text, _, count = text.partition(":")
    name, _, rank = text.partition("@")
    if fault and fault not in FAULTS:
        raise ValueError(f"AUTORESUME_FAILPOINT: no fault is called {fault!r}; there are {', '.join(FAULTS)}")
    return _Armed(name, rank or None, int(count or 1), fault or "kill")


_observer: Callable[[str], None] | None = None
_counts: dict[str, int] = {}
_armed = parse(os.environ["AUTORESUME_FAILPOINT"]) if os.environ.get("AUTORESUME_FAILPOINT") else None


def set_observer(observer: Callable[[str], None] | None) -> None:
    """Call `observer(name)` at each failpoint of this process; None turns it off."""
    global _observer
    _observer = observer


def failpoint(name: str) -> None:
    """Mark a place. Does nothing unless a test armed it; then it may raise OSError."""
    if _observer is not None:
        _observer(name)
    if _armed is None or _armed.name != name:
        return
    if _armed.rank is not None and _armed.rank != os.environ.get("RANK", "0"):
        return
    _counts[name] = _counts.get(name, 0) + 1
    if _counts[name] >= _armed.time:
        _strike(_armed.fault, first=_counts[name] == _armed.time)


def _strike(fault: str, first: bool) -> None:
    if fault in ERRORS:
        raise OSError(ERRORS[fault], f"{os.strerror(ERRORS[fault])} (injected)")
    if fault == "slow":
        time.sleep(_SLOW_SECONDS)
    if not first:
        return
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "kill-parent":
        os.kill(os.getppid(), signal.SIGKILL)
    elif fault == "clock":
        real = time.time
        time.time = lambda: real() - _DAY_SECONDS
    elif fault == "storm":
        for number in _STORM * 8:
            os.kill(os.getpid(), number)
