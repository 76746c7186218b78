"""The checkpoints that this life of a run asks for, and what is told of them.

Law: a state is saved once: a boundary that was saved already is not saved again. What a rank saves is in
the session's hands afterwards; whether it is committed is asked of the session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from autoresume.format.names import CheckpointName
from autoresume.run.session import Session
from autoresume.snapshot.saver import Logged, SnapshotTaken

log = logging.getLogger("autoresume")

_TELL_SECONDS = 10.0
"""Saves are told of at most this often; the log at level DEBUG has all."""


class Saves:
    """`saved_step` is the step of the state that was saved last, or restored."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.saved_step: int | None = None
        self.last: CheckpointName | None = None
        self._told = float("-inf")

    def save(
        self,
        step: int,
        name: CheckpointName,
        objects: Mapping[str, Any],
        promised: frozenset[str],
        about: dict[str, Any],
        logged: Callable[[], Logged],
        urgent: bool,
    ) -> None:
        """Save the state after `step` of this rank as `name`, with what was `logged` up to then.

        Unless it is `urgent` the snapshot may be completed while training goes on.
        """
        taken = self._session.save(name, objects, promised, about, logged, urgent)
        self.saved_step, self.last = step, name
        if self._session.ranks.rank == 0:
            self._log_snapshot(taken)

    def forget_torn(self) -> None:
        """A snapshot of this very step that was given up is taken again, where one rank can decide that."""
        self._session.saver.finish_handover()
        if self._session.ranks.world_size == 1 and str(self.last) in self._session.saver.torn:
            self.saved_step = self.last = None

    def _log_snapshot(self, taken: SnapshotTaken) -> None:
        now = time.monotonic()
        level = logging.INFO if now - self._told >= _TELL_SECONDS else logging.DEBUG
        if level == logging.INFO:
            self._told = now
        megabytes, milliseconds = taken.bytes / 1e6, taken.stall_seconds * 1e3
        log.log(level, "step %d: snapshot of %.1f MB in %.0f ms", taken.name.step, megabytes, milliseconds)

    def await_last(self, deadline: float = float("inf")) -> CheckpointName | None:
        """Wait for the last one's commit; its name if that failed, or did not come in time."""
        last = self.last
        return None if last is None or self._session.await_commit(last, deadline) else last
