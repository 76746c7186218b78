"""What a run's user asks of it while it trains: to stop.

Law: a request is a file in the run directory, so that it can be made from any machine that sees it, with and
without a batch system. It holds for the lives that are there when it is made, be they still starting: one that
is started later removes it.
"""

from __future__ import annotations

import json
import time

from autoresume.format import names
from autoresume.storage.base import Storage


def ask_to_stop(storage: Storage, why: str) -> None:
    """The run saves, leaves, and is not started again by itself. Durable when it returns."""
    storage.write(names.STOP_REQUEST, json.dumps({"time": time.time(), "why": why}).encode())


def stop_requested(storage: Storage, since: float = 0.0) -> str | None:
    """Why, if somebody has asked for it since that moment."""
    try:
        request = json.loads(storage.read(names.STOP_REQUEST))
        return str(request["why"]) if float(request["time"]) >= since else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear(storage: Storage, before: float) -> None:
    """A life begins that was started at that moment, on purpose: what was asked for earlier is void."""
    if stop_requested(storage, before) is None:
        storage.remove(names.STOP_REQUEST)
