"""Rank 0's heartbeat: other machines see that this life lives; it sees newer claims, and what its user asks for.

Law: a thread that only writes files and sets two attributes of `Orders`, which are looked at where a step ends.
"""

from __future__ import annotations

import json
import logging
import threading
import time

from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.persist import Guard
from autoresume.errors import StaleIncarnation
from autoresume.format import names
from autoresume.run.orders import Orders
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")

_REQUEST_SECONDS = 2.0


class Heartbeat(threading.Thread):
    """Of incarnation `number`. Started when it is made."""

    def __init__(self, storage: Storage, number: int, guard: Guard, orders: Orders) -> None:
        super().__init__(name="autoresume-heartbeat", daemon=True)
        self._storage, self._number, self._guard, self._orders = storage, number, guard, orders
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        next_beat, told = 0.0, False
        while True:
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + incarnation.HEARTBEAT_SECONDS
                    self._guard()
                    incarnation.write_heartbeat(self._storage, self._number)
                    progress = {"incarnation": self._number, **self._orders.progress()}
                    self._storage.write(names.PROGRESS, json.dumps(progress).encode())
                    told = False
                self._orders.stop_reason = requests.stop_requested(self._storage)
            except StaleIncarnation as error:
                self._orders.stale = str(error)
                return
            except OSError as error:
                if not told:
                    log.warning("the heartbeat could not be written: %s", error)
                told = True
            if self._stopped.wait(_REQUEST_SECONDS):
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()
