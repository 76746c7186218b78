"""Who persists a sealed snapshot: a thread of this rank, or the node's daemon. One code, two owners.

Law: a sink takes a sealed arena, makes it durable, commits when all parts are there, prunes, and only
then gives the arena back. Failures are outcomes, not exceptions: training goes on, and the older
checkpoints stay.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoresume.base import spans
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import Outcome, prune_after_commit
from autoresume.checkpoint.persist import Guard, Snapshot, persist
from autoresume.checkpoint.retain import Keep
from autoresume.errors import AutoresumeError, CheckpointInvalid, StorageFailed, StorageFull
from autoresume.format.names import CheckpointName
from autoresume.handoff import kept_snapshots
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import Mailbox
from autoresume.ranks.agreement import Ranks
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")


@dataclass(frozen=True)
class Sealed:
    snapshot: Snapshot
    arena: Arena


class Sink(Protocol):
    """Where sealed snapshots go."""

    def submit(self, sealed: Sealed) -> None:
        """Hand a snapshot over. Returns at once; the arena is busy from now on."""

    def busy(self, arena: Arena) -> bool:
        """True while `arena` is still needed."""

    def forget(self, arena: Arena) -> None:
        """`arena` is about to be written again: nobody may take its last snapshot for one any more."""

    def idle(self) -> bool:
        """True when nothing that was submitted is still in work."""

    def outcomes(self) -> list[Outcome]:
        """What became of snapshots since the last call."""

    def alive(self) -> bool:
        """False when nobody persists any more (the daemon is gone)."""

    def close(self) -> None:
        """Wait for what was submitted."""


class ThreadSink:
    """Without a daemon: one background thread persists, commits and prunes."""

    def __init__(self, storage: Storage, keep: Keep, guard: Guard) -> None:
        self._storage, self._keep, self._guard = storage, keep, guard
        self._pool = ThreadPoolExecutor(1, "autoresume-persist")
        self._busy: dict[int, Future[None]] = {}
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._collected = False

    def submit(self, sealed: Sealed) -> None:
        self._busy[id(sealed.arena)] = self._pool.submit(self._persist, sealed.snapshot)

    def busy(self, arena: Arena) -> bool:
        future = self._busy.get(id(arena))
        return future is not None and not future.done()

    def forget(self, arena: Arena) -> None:
        """It dies with this process."""

    def idle(self) -> bool:
        return all(future.done() for future in self._busy.values())

    def outcomes(self) -> list[Outcome]:
        with self._lock:
            found, self._outcomes = self._outcomes, []
        return found

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _persist(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        name = snapshot.checkpoint
        try:
            persist(self._storage, snapshot, self._guard)
            manifest = commit_if_complete(self._storage, name, self._guard, snapshot.world_size)
            if manifest is not None:
                prune_after_commit(self._storage, name, self._keep, self._guard, self._collected)
                self._collected = True
            outcome = Outcome(str(name), manifest is not None, None, time.monotonic() - began, snapshot.bytes)
        except (AutoresumeError, OSError) as error:
            outcome = Outcome(str(name), False, f"{type(error).__name__}: {error}", time.monotonic() - began, 0)
        except Exception as error:  # the thread's boundary: who waits for the commit must hear of it
            outcome = Outcome(str(name), False, f"{type(error).__name__}: {error}", time.monotonic() - began, 0)
            log.exception("%s can't be persisted", name)
        with self._lock:
            self._outcomes.append(outcome)


class DaemonSink:
    """With a daemon: a message names the sealed arena; the daemon removes the message when it is done."""

    def __init__(
        self, mailbox: Mailbox, run_folder: Path, daemon: tuple[int, float], lives: Callable[..., bool]
    ) -> None:
        self._mailbox, self._run_folder = mailbox, run_folder
        self._daemon, self._lives = daemon, lives
        self._sent: dict[int, str] = {}
        self._seen: set[str] = set()
        self._failed: set[str] = set()

    def submit(self, sealed: Sealed) -> None:
        snapshot, arena = sealed.snapshot, sealed.arena
        assert arena.path is not None
        message = f"sealed-{snapshot.checkpoint}-{snapshot.rank:05d}"
        before = message.replace("sealed-", "outcome-", 1)
        if before in self._seen:  # it is taken again
            self._mailbox.remove(before)
            self._seen.discard(before)
            self._failed.discard(str(snapshot.checkpoint))
        attachments = {key: [file, self._blob(data)] for key, (file, data) in snapshot.attachments.items()}
        self._mailbox.send(
            message,
            {
                "run_folder": str(self._run_folder),
                "arena": arena.path.name,
                "bytes": len(snapshot.image),
                "first_bytes": snapshot.first_bytes,
                "run_id": snapshot.run_id,
                "checkpoint": str(snapshot.checkpoint),
                "rank": snapshot.rank,
                "world_size": snapshot.world_size,
                "time": snapshot.time,
                "chunks": self._blob(snapshot.chunks),
                "tree": self._blob(snapshot.tree),
                "about": snapshot.about,
                "attachments": attachments,
                "files": list(snapshot.files),
                "sync": snapshot.sync,
                "labels": snapshot.labels.to_json(),
                "replicas": None if snapshot.replicas is None else snapshot.replicas.to_json(),
                "spans": spans.is_recording(),
            },
        )
        self._sent[id(arena)] = message

    def _blob(self, data: bytes) -> str:
        """A file beside the message, for what is large; the daemon removes it with the message."""
        name = f"blob-{os.urandom(9).hex()}"
        (self._mailbox.folder / name).write_bytes(data)
        return name

    def busy(self, arena: Arena) -> bool:
        message = self._sent.get(id(arena))
        return message is not None and self._mailbox.waiting(message)

    def forget(self, arena: Arena) -> None:
        if arena.path is not None:
            kept_snapshots.forget(self._mailbox, arena.path.name)

    def idle(self) -> bool:
        return not any(self._mailbox.waiting(message) for message in self._sent.values())

    def outcomes(self) -> list[Outcome]:
        found = []
        for name in self._mailbox.names("outcome-"):
            if name not in self._seen:
                value: dict[str, Any] | None = self._mailbox.receive(name)
                if value is not None:
                    self._seen.add(name)
                    outcome = Outcome(**value)
                    if outcome.problem is None or outcome.checkpoint not in self._failed:
                        found.append(outcome)
                    if outcome.problem is not None:
                        self._failed.add(outcome.checkpoint)  # one rank's reason is told, not that of each
        return found

    def alive(self) -> bool:
        return self._lives(*self._daemon)

    def close(self) -> None:
        while self.alive() and not self.idle():
            time.sleep(0.01)


def await_commit(
    storage: Storage,
    name: CheckpointName,
    sink: Sink,
    note: Callable[[], set[str]],
    guard: Guard,
    deadline: float,
    ranks: Ranks | None = None,
) -> bool:
    """Wait until `name` is committed; False at the monotonic `deadline`, or when nobody will commit it any more.

    `note()` gives the names of checkpoints that are known to have failed. With `ranks`, each tells the others
    whether it could write its part, since on one whose part is written nothing else shows that it is in vain.
    """
    while sink.alive() and not sink.idle() and time.monotonic() < deadline:
        time.sleep(0.01)
    if ranks is not None and sink.idle():
        try:
            failed = ranks.gather(str(name) in note())
        except RuntimeError:
            failed = [True]  # another rank has left, at its own deadline
        if any(failed):
            return storage.size(name.manifest) is not None
    next_help = time.monotonic() + 1.0
    while storage.size(name.manifest) is None:
        now = time.monotonic()
        if str(name) in note() or not sink.alive() or now > deadline:
            return storage.size(name.manifest) is not None
        if now > next_help:
            # Shared file systems show other nodes' parts late: whoever sees them all at last commits.
            next_help = now + 1.0
            try:
                commit_if_complete(storage, name, guard, None if ranks is None else ranks.world_size)
            except (CheckpointInvalid, StorageFull, StorageFailed) as error:
                log.warning("%s", error)
                return False
        time.sleep(0.01)
    return True
