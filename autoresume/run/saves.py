"""The checkpoints that this life of a run takes, and what becomes of them.

Law: a state is saved once: a boundary that was saved already is not saved again. A snapshot that is not committed is
told of, with its reason, and harms neither the training nor an older checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoresume.base import spans
from autoresume.checkpoint import sidefiles
from autoresume.checkpoint.persist import Guard
from autoresume.format.names import CheckpointName
from autoresume.ranks.agreement import Ranks
from autoresume.run.cadence import Cadence
from autoresume.snapshot.saver import Logged, Saver, SnapshotTaken
from autoresume.snapshot.sinks import await_commit
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_TELL_SECONDS = 10.0
"""Saves are told of at most this often; the log at level DEBUG has all."""


@dataclass(frozen=True)
class Content:
    """What is saved: the tracked objects by name, the names of those that every rank holds alike, and what the
    checkpoint says of its run. `logged` is asked when the devices have been told what to copy."""

    objects: Mapping[str, Any]
    promised: frozenset[str]
    about: dict[str, Any]
    logged: Callable[[], Logged]


class Saves:
    """`saved_step` is the step of the state that was saved last, or restored; `last` the name of what was saved last.
    `stale`: another life has overtaken this one, as a commit found out."""

    def __init__(self, storage: LocalStorage, ranks: Ranks, saver: Saver, cadence: Cadence, guard: Guard) -> None:
        self.saver = saver
        self.saved_step: int | None = None
        self.last: CheckpointName | None = None
        self.stale: str | None = None
        self._storage, self._ranks, self._cadence, self._guard = storage, ranks, cadence, guard
        self._failed: set[str] = set()
        self._contradictory: set[str] = set()
        """Of these, whose parts don't go together."""
        self._told = float("-inf")

    def save(self, step: int, name: CheckpointName, content: Content, urgent: bool) -> None:
        """Save the state after `step` of this rank as `name`. Nothing is durable yet; `await_last` waits for that.

        Unless it is `urgent` the snapshot may be completed while training goes on. Raises StateError.
        """
        files = sidefiles.copy_into(self._storage, name) if self._ranks.rank == 0 else ()
        waited = self.saver.joined_seconds  # for the save before this one
        taken = self.saver.save(
            name, content.objects, content.promised, content.about, files, urgent=urgent, logged=content.logged
        )
        self._cadence.note_saved(time.monotonic(), taken.stall_seconds + waited)
        self.note_outcomes()
        self.saved_step, self.last = step, name
        if self._ranks.rank == 0:
            self._log_snapshot(taken)

    def _log_snapshot(self, taken: SnapshotTaken) -> None:
        now = time.monotonic()
        level = logging.INFO if now - self._told >= _TELL_SECONDS else logging.DEBUG
        if level == logging.INFO:
            self._told = now
        megabytes, milliseconds = taken.bytes / 1e6, taken.stall_seconds * 1e3
        log.log(level, "step %d: snapshot of %.1f MB in %.0f ms", taken.name.step, megabytes, milliseconds)

    def note_outcomes(self) -> set[str]:
        """Tell of snapshots that failed to become checkpoints; the names of all that did so far."""
        self._failed |= self.saver.torn
        outcomes = self.saver.sink.outcomes()
        durable = [outcome.seconds for outcome in outcomes if outcome.problem is None]
        if durable:
            self._cadence.note_durable(max(durable))
        for outcome in outcomes:
            spans.add_recorded(outcome.spans)
            if outcome.problem is not None:
                self._failed.add(outcome.checkpoint)
                if outcome.problem.startswith("CheckpointInvalid"):
                    self._contradictory.add(outcome.checkpoint)
                log.warning("checkpoint %s was not saved: %s", outcome.checkpoint, outcome.problem)
                if outcome.problem.startswith("StaleIncarnation"):
                    self.stale = outcome.problem
        return self._failed

    def forget_torn(self, step: int) -> None:
        """At the end: a snapshot of this very step that was given up, or mixes what the ranks hold, is taken again.
        Every rank must call it."""
        self.saver.finish_handover()
        if self._ranks.world_size == 1:
            if str(self.last) in self.saver.torn:
                self.saved_step = self.last = None
            return
        last = self.last if self.saved_step == step else None
        mixed = last is not None and self.saver.is_mixed(last)
        while self.saver.sink.alive() and not self.saver.sink.idle():
            time.sleep(0.002)
        self.note_outcomes()
        bad = last is not None and (mixed or str(last) in self.saver.torn or str(last) in self._contradictory)
        if any(self._ranks.gather(bad)):
            if self._ranks.rank == 0 and last is not None:
                log.info("checkpoint %s is taken again, and takes the place of what was saved of that step", last)
                self._storage.remove(last.folder)
            self._ranks.gather(None)
            self._failed.discard(str(last))
            self.saver.torn.discard(str(last))
            self.saved_step = self.last = None

    def await_last(self, deadline: float = float("inf")) -> CheckpointName | None:
        """Wait for the last one's commit; its name if that failed, or did not come by the monotonic `deadline`."""
        last = self.last
        if last is None:
            return None
        self.saver.finish_handover()
        committed = await_commit(
            self._storage, last, self.saver.sink, self.note_outcomes, self._guard, deadline, self._ranks
        )
        return None if committed else last
