"""Named places where a test may stop the world.

Law: `reach(name)` costs one dictionary look-up when no failpoint is set. Set one with
AUTORESUME_FAILPOINT="name", "name:3" (the third time) or "name@1" (on rank 1 only, "name@1:3"
for both): the process kills itself with SIGKILL there, as a node failure would. Tests in the same
process give a callback to `observe` instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_observer: Callable[[str], None] | None = None
_counts: dict[str, int] = {}


def _parse(text: str) -> tuple[str, str | None, int]:
    text, _, count = text.partition(":")
    name, _, rank = text.partition("@")
    return name, rank or None, int(count or 1)


_armed = _parse(os.environ["AUTORESUME_FAILPOINT"]) if os.environ.get("AUTORESUME_FAILPOINT") else None


def observe(observer: Callable[[str], None] | None) -> None:
    """Call `observer(name)` at each failpoint of this process; None turns it off."""
    global _observer
    _observer = observer


def reach(name: str) -> None:
    """Mark a place. Does nothing unless a test armed it."""
    if _observer is not None:
        _observer(name)
    if _armed is None or _armed[0] != name:
        return
    if _armed[1] is not None and _armed[1] != os.environ.get("RANK", "0"):
        return
    _counts[name] = _counts.get(name, 0) + 1
    if _counts[name] == _armed[2]:
        os.kill(os.getpid(), signal.SIGKILL)
