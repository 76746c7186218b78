"""Rank 0's list of the checkpoints that may be restored, newest first.

Law: what is damaged goes aside only when another takes its place. A run that has had checkpoints is never silently
started from scratch.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from autoresume.checkpoint.abandon import has_manifest
from autoresume.checkpoint.discover import Judged, complete_commits, judge, list_checkpoints, set_aside
from autoresume.checkpoint.incarnation import numbers
from autoresume.checkpoint.persist import Guard
from autoresume.checkpoint.retain import collect_unpublished
from autoresume.errors import NoValidCheckpoint
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")


VISIBLE_SECONDS = 60.0

_LOOK_AGAIN_SECONDS = 1.0


class Candidates:
    """Rank 0's list, newest first. What is damaged goes aside when another takes its place: where none does, the
    storage may be what fails, and what it holds be as good as ever."""

    def __init__(self, storage: Storage, run_id: str, guard: Guard, rejected: list[str]) -> None:
        self.storage, self.run_id, self.guard, self.rejected = storage, run_id, guard, rejected
        self.left: list[CheckpointName] | None = None
        self.offered: Judged | None = None
        self.had_some = False
        self._refused: list[Judged] = []
        self._vanished: set[CheckpointName] = set()
        self._deadline = 0.0
        """How long to look for what has taken the place of the vanished."""

    def _list(self) -> list[CheckpointName]:
        for name in complete_commits(self.storage, self.guard):
            log.info("checkpoint %s was written whole but not committed; completed it", name)
        return list_checkpoints(self.storage)

    def next(self) -> dict[str, Any]:
        if self.left is None:
            collect_unpublished(self.storage, max(numbers(self.storage), default=0), self.guard)
            self.left = self._list()
            self.had_some = bool(self.storage.list(names.ASIDE))
        while self.left or self._look_again():
            name = self.left.pop(0)
            judged = judge(self.storage, name, self.run_id)
            if judged.uncommitted and has_manifest(self.storage, name):
                judged = judge(self.storage, name, self.run_id)  # by a life that is over, just now
            self.offered = judged
            if judged.problem is None and judged.manifest is not None:
                self.had_some = True
                return self._offer(str(judged.name), judged.manifest.digest)
            self.reject(judged.problem or "")
        self.guard()  # a successor may have pruned what was here to be chosen
        if self.had_some:
            where = "; ".join(self.rejected) or f"see {names.ASIDE}/ in the run directory"
            left = "They were left where they are: if the storage fails, start again when it is well. "
            raise NoValidCheckpoint(
                f"this run has had checkpoints, but none can be restored: {where}. It was not started from scratch. "
                + (left if self._refused else "")
                + f"Move a good checkpoint back into {names.CHECKPOINTS}/, or choose another run directory to begin."
            )
        return self._offer(None, None)

    def _look_again(self) -> bool:
        """Whether there is something to try after all. What was listed and is gone was pruned when something newer was
        committed: a node that keeps listings for a while (NFS) sees that one later."""
        while self._vanished and time.monotonic() < self._deadline:
            self.guard()
            time.sleep(_LOOK_AGAIN_SECONDS)
            listed = self._list()
            self._vanished.intersection_update(listed)
            self.left = [name for name in listed if has_manifest(self.storage, name)]
            if self.left:
                return True
        return False

    def _offer(self, name: str | None, digest: str | None) -> dict[str, Any]:
        return {"name": name, "digest": digest, "rejected": self.rejected}

    def reject(self, problem: str) -> None:
        assert self.offered is not None
        name = self.offered.name
        gone = not self.storage.list(name.folder)  # also where what was looked up before still says otherwise (NFS)
        if gone:
            self._vanished.add(name)
            self._deadline = time.monotonic() + VISIBLE_SECONDS
        if gone or self.offered.uncommitted:
            # Never committed: what a killed save left. It is deleted after the next commit.
            log.warning("checkpoint %s is skipped: %s", name, problem)
            self.rejected.append(f"{name}: {problem}")
            return
        self.had_some = True
        log.warning("checkpoint %s can't be restored: %s", name, problem)
        self._refused.append(Judged(name, None, problem))
        self.rejected.append(f"{name}: {problem}")

    def settle(self) -> None:
        """The one that was offered last is restored. Raises StaleIncarnation."""
        if self._refused:
            self.guard()
        for judged in self._refused:
            log.warning("checkpoint %s is put aside to %s", judged.name, set_aside(self.storage, judged))
        self._refused.clear()
