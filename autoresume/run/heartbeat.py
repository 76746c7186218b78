"""Rank 0's heartbeat: other machines see that this life lives; it sees newer claims, and what its user asks for.

Law: a thread that only writes files and sets two attributes, which are looked at where a step ends.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from autoresume.checkpoint import incarnation, requests
from autoresume.errors import StaleIncarnation
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")

_REQUEST_SECONDS = 2.0


class HeartbeatOwner(Protocol):
    """What the heart needs of a session."""

    number: int
    stale: str | None
    stop_reason: str | None

    @property
    def storage(self) -> Storage: ...

    def guard(self) -> None: ...

    def note_progress(self) -> None: ...


class Heartbeat(threading.Thread):
    """Rank 0 shows other machines that it lives, and notices a newer incarnation and its user's requests."""

    def __init__(self, session: HeartbeatOwner) -> None:
        super().__init__(name="autoresume-heart", daemon=True)
        self._session = session
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        session, next_beat, told = self._session, 0.0, False
        while True:
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + incarnation.HEARTBEAT_SECONDS
                    session.guard()
                    incarnation.write_heartbeat(session.storage, session.number)
                    session.note_progress()
                    told = False
                session.stop_reason = requests.stop_requested(session.storage)
            except StaleIncarnation as error:
                session.stale = str(error)
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
